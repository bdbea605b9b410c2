"""What a distillation method defines for synthesis: which images are optimised together, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Stream = tuple[int, str, int, int]
"""Seed, stage, slice and class of a batch's first image: the path of all its random draws (`cudd_core.seeding`)."""

Terms = Mapping[str, Tensor]
"""The weighted terms of a loss, scalars by name; their sum is minimised."""


@dataclass(frozen=True)
class Batch:
    """The originals of images that are optimised together.

    `originals` [n, C, H, W] normalised floats on the device, channels last; `labels` int64 [n] on the device.
    """

    originals: Tensor
    labels: Tensor
    stream: Stream


@dataclass(frozen=True)
class Descent:
    """The optimisation of one batch, from its start to the images that are kept.

    `images` [n, C, H, W]: the leaf whose last iterate is kept, normalised, clamped to valid pixels after every step;
    `optimizer`: over the images and whatever else is learned with them; `decay(iteration)`: the factor on its learning
    rates at a step. `inputs(first)`: the arguments of `terms` for every iteration from `first` to the last; `terms`
    then computes the loss from what was learned so far. Random draws depend only on the batch's stream, the
    configuration and the iteration, so that a descent can resume after a kill. `recordable`: `inputs` are tensors, and
    `terms` is a step that `cudd_core.compute.graphs` can record. `learned`: further scalars that are logged beside the
    terms.
    """

    images: Tensor
    optimizer: torch.optim.Optimizer
    decay: Callable[[int], float]
    inputs: Callable[[int], Iterator[tuple[Any, ...]]]
    terms: Callable[..., Terms]
    recordable: bool
    learned: Mapping[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A method's objective, with the networks it needs, ready for the images of one task."""

    @property
    def iterations(self) -> int:
        """Steps for each batch."""
        ...

    @property
    def log_every(self) -> int:
        """Steps between logged terms; the first and the last are always logged."""
        ...

    def batches(self, num_slices: int, num_classes: int) -> Iterator[Tensor]:
        """Yield int64 positions (slice-major) of the images that are optimised together; every image once."""
        ...

    def descent(self, batch: Batch) -> Descent:
        """Return the optimisation of one batch, at its start."""
        ...
