"""A frozen BatchNorm layer and what follows it, which cpu/batchnorm.py and gpu/batchnorm.py compute in one pass."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from torch import Tensor


class After(IntEnum):
    """What follows normalisation. The numbers are those in cpu/batchnorm.c."""

    NOTHING = 0
    RELU = 1
    POOL = 2
    """ReLU, then 2 × 2 average pooling; the last row or column of an odd side is left out."""
    JOIN = 3
    """Addition of other features, then ReLU."""


class Layer(NamedTuple):
    """A layer's μ and σ² (`running`), γ (`weight`) and β (`bias`), all [c], and ε (`eps`)."""

    running: tuple[Tensor, Tensor]
    weight: Tensor
    bias: Tensor
    eps: float

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return s and t [c], float64."""
        mean, variance = (value.double() for value in self.running)
        scale = self.weight.double() * (variance + self.eps).rsqrt()
        return scale, self.bias.double() - scale * mean
