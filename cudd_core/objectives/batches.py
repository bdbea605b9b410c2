"""Which images share a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cudd_core.seeding import host_rng


def batch_positions(num_slices: int, num_classes: int, batch_size: int) -> Iterator[Tensor]:
    """Yield int64 positions (slice-major) of the images that are optimised together.

    A batch has one image per class as far as possible: a slice is cut into batches of `batch_size` classes or, if a
    whole slice is no larger than a batch, as many whole slices as fit are joined. Batches depend on the configuration
    alone.
    """
    if batch_size >= num_classes:
        joined = batch_size // num_classes
        for first in range(0, num_slices, joined):
            yield torch.arange(first * num_classes, min(first + joined, num_slices) * num_classes)
        return
    for start in range(0, num_slices * num_classes, num_classes):
        for first in range(0, num_classes, batch_size):
            yield torch.arange(start + first, start + min(first + batch_size, num_classes))


def permuted_classes(slices: range, classes: Tensor, seed: int) -> Tensor:
    """Return positions of images, int64 [n], slice-major, with the classes of each slice in a random order of its own.

    A slice's order depends on (seed, slice, first class of the block), not on which task makes it.
    """
    orders = [
        torch.from_numpy(host_rng(seed, "synthesize", number, int(classes[0]), "classes").permutation(len(classes)))
        for number in slices
    ]
    return torch.cat([len(classes) * i + order for i, order in enumerate(orders)])
