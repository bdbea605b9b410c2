"""The first n images of each class of another split."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from cudd_core.data.labels import place_in_class
from cudd_core.data.source import ImageSplit


class LimitedSplit:
    """A view of `whole` with at most `per_class` images of each class, in their order. Nothing is copied.

    `positions` int64 [n]: where its images are in `whole`.
    """

    def __init__(self, whole: ImageSplit, per_class: int) -> None:
        self.whole = whole
        self.positions = torch.nonzero(place_in_class(whole.labels) < per_class).flatten()
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
