"""The first n images of each class of another split."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from cudd_core.data.source import ImageSplit


class LimitedSplit:
    """A view of `whole` with at most `per_class` images of each class, in their order. Nothing is copied.

    `positions` int64 [n]: where its images are in `whole`.
    """

    def __init__(self, whole: ImageSplit, per_class: int) -> None:
        self.whole = whole
        self.positions = first_of_each_class(whole.labels, per_class)
        self.labels = whole.labels[self.positions]
        self.class_names = whole.class_names
        self.channels = whole.channels
        self.image_size = whole.image_size
        self.digest = hashlib.sha256(f"{whole.digest} limit_per_class={per_class}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Return images at `indices` (int64 [n], positions in this view) as uint8 [n, C, H, W]."""
        return self.whole.images(self.positions[indices])


def first_of_each_class(labels: Tensor, per_class: int) -> Tensor:
    """Return the ascending positions (int64) of the first `per_class` occurrences of every label of int64 [N]."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(labels)) - starts[labels[order]]
    return torch.nonzero(rank < per_class).flatten()
