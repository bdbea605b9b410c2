"""What a distillation method says of its synthesis: which images belong together, and how they descend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Stream = tuple[int, str, int, int]
"""Seed, stage, slice and class of a batch's first image: the path of all its random draws (`cudd_core.seeding`)."""

Terms = Mapping[str, Tensor]
"""The weighted terms of a loss, scalars by name; what is minimised is their sum."""


@dataclass(frozen=True)
class Batch:
    """Originals of the images that are optimised together.

    `originals` [n, C, H, W] normalised floats on the device, channels last; `labels` int64 [n] on the device.
    """

    originals: Tensor
    labels: Tensor
    stream: Stream


@dataclass(frozen=True)
class Descent:
    """One batch on its way from a start to the images that are kept.

    `images` [n, C, H, W]: the leaf whose last iterate is kept, normalised, clamped to valid pixels after every step;
    `optimizer`: over the images and whatever else is learned with them; `decay(iteration)`: the factor of its learning
    rates at a step. `inputs(first)`: from that iteration to the last one, what `terms` is called with to compute the
    terms from what was learned so far. Random draws follow from the iteration, so that a descent can go on after a
    kill. `recordable`: `inputs` are tensors, and `terms` is a step as `cudd_core.compute.graphs` can record. `learned`:
    further scalars that are logged beside the terms.
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
        """Steps of each batch."""
        ...

    @property
    def log_every(self) -> int:
        """Steps between logged terms; the first and the last are logged always."""
        ...

    def batches(self, num_slices: int, num_classes: int) -> Iterator[Tensor]:
        """Yield int64 positions (slice-major) of the images that are optimised together; all, each once."""
        ...

    def descent(self, batch: Batch) -> Descent:
        """Return the optimisation of one batch, at its start."""
        ...
