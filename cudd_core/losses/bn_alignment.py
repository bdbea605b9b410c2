"""L_bn of Eq. 4: draws batch statistics towards those of the original data that BatchNorm has stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Statistics = Sequence[tuple[Tensor, Tensor]]
"""(mean [c], biased variance [c]) of every BatchNorm layer's input."""


def bn_alignment(batch: Statistics, target: Statistics, first_factor: float = 1.0) -> Tensor:
    """Return Σ_l w_l (‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂), a scalar; w is `first_factor` for the first layer, else 1.

    Zero exactly when all statistics agree; the gradient there is taken as zero.
    """
    total = torch.zeros((), device=batch[0][0].device, dtype=batch[0][0].dtype)
    for index, ((mean, variance), (target_mean, target_variance)) in enumerate(zip(batch, target, strict=True)):
        distance = torch.linalg.vector_norm(mean - target_mean) + torch.linalg.vector_norm(variance - target_variance)
        total = total + (first_factor if index == 0 else 1.0) * distance
    return total
