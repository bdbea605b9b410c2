"""Labels of a split: checks that every source performs, and the place of each image in its class."""

from __future__ import annotations

import torch
from torch import Tensor

from cudd_core.errors import DataError


def check_labels(labels: Tensor, class_names: tuple[str, ...], where: str, *, every_class: bool) -> None:
    """Reject labels (int64 [N]) outside 0 … K − 1 and, with `every_class`, classes without any image.

    Raises:
        DataError: labels are rejected or there are none; names `where`, the label and what to do.
    """
    classes = len(class_names)
    if labels.numel() == 0:
        raise DataError(f"{where} holds no images. Check data.root and the split's name.")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise DataError(
            f"{where} has the label {lowest}. Labels must be 0 to {classes - 1}; -1 usually marks a split without "
            "labels: choose another split with data.train_split or data.test_split."
        )
    if highest >= classes:
        raise DataError(f"{where} has the label {highest}, but names only {classes} classes (0 to {classes - 1}).")
    if every_class:
        counts = torch.bincount(labels, minlength=classes)
        if bool((counts == 0).any()):
            absent = torch.nonzero(counts == 0).flatten().tolist()
            listed = ", ".join(f"{label} ({class_names[label]})" for label in absent[:5])
            raise DataError(
                f"{where} has no image of {len(absent)} of {classes} classes: {listed}. Every class needs one: add "
                "images, take out a class (an empty folder), or number labels from 0 to K - 1 without a gap."
            )


def positions_of(labels: Tensor, classes: range) -> Tensor:
    """Return the positions of labels, int64 [N], that are in a block of classes: int64 [n], ascending."""
    return ((labels >= classes.start) & (labels < classes.stop)).nonzero().flatten()


def place_in_class(labels: Tensor) -> Tensor:
    """Return how many images of the same class come before each one, int64 [N], for labels int64 [N]."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = counts.cumsum(0) - counts
    places = torch.empty_like(order)
    places[order] = torch.arange(len(labels)) - starts[labels[order]]
    return places
