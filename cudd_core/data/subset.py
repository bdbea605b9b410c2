"""Some images of a split, or some classes of a split or synthetic set, renumbered from 0."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from cudd_core.data.labels import place_in_class
from cudd_core.data.source import ImageSplit
from cudd_core.records import SyntheticSet


class Subset:
    """A view of only the images at `positions` (int64 [n]) of `whole`, without a copy. `which` enters the digest."""

    def __init__(self, whole: ImageSplit, positions: Tensor, which: str) -> None:
        self.whole, self.positions = whole, positions
        self.labels, self.class_names = whole.labels[positions], whole.class_names
        self.channels, self.image_size = whole.channels, whole.image_size
        self.digest = hashlib.sha256(f"{whole.digest} {which}".encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Return images at `indices` (int64 [n], positions in this view) as uint8 [n, C, H, W]."""
        return self.whole.images(self.positions[indices])


def limited(whole: ImageSplit, per_class: int) -> Subset:
    """Return the first images of each class, at most `per_class`, in their original order."""
    positions = torch.nonzero(place_in_class(whole.labels) < per_class).flatten()
    return Subset(whole, positions, f"limit_per_class={per_class}")


def split_of_classes(whole: ImageSplit, classes: tuple[int, ...]) -> Subset:
    """Return the images of `classes` (ascending), in the order of `whole`; label i is class classes[i]."""
    positions, labels = _renumbered(whole.labels, classes)
    view = Subset(whole, positions, f"classes={list(classes)}")
    view.labels, view.class_names = labels, tuple(whole.class_names[label] for label in classes)
    return view


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
