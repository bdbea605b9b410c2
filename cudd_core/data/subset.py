"""Some classes of a split or of a synthetic set, numbered anew."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from cudd_core.data.source import ImageSplit
from cudd_core.records import SyntheticSet


class ClassSubset:
    """A view of `whole` with the images of `classes` (ascending) alone, in their order; label i is class classes[i]."""

    def __init__(self, whole: ImageSplit, classes: tuple[int, ...]) -> None:
        self._whole = whole
        self._positions, self.labels = _renumbered(whole.labels, classes)
        self.class_names = tuple(whole.class_names[label] for label in classes)
        self.channels = whole.channels
        self.image_size = whole.image_size
        self.digest = hashlib.sha256(f"{whole.digest} classes={list(classes)}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Return images at `indices` (int64 [n], positions in this view) as uint8 [n, C, H, W]."""
        return self._whole.images(self._positions[indices])


def set_of_classes(whole: SyntheticSet, classes: tuple[int, ...]) -> SyntheticSet:
    """Return the images of `classes` (ascending), in the order of `whole`; label i is class classes[i]."""
    kept, labels = _renumbered(whole.labels, classes)
    return SyntheticSet(
        images=whole.images[kept],
        labels=labels,
        slices=whole.slices[kept],
        sources=whole.sources[kept],
        curricula=whole.curricula[kept],
        class_names=tuple(whole.class_names[label] for label in classes),
    )


def _renumbered(labels: Tensor, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return the positions of the labels in `classes`, ascending, and their places in `classes`, both int64 [n]."""
    wanted = torch.tensor(classes)
    positions = torch.isin(labels, wanted).nonzero().flatten()
    return positions, torch.searchsorted(wanted, labels[positions])
