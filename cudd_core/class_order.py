"""Class order: detect from predictions that a network's outputs are not in the data's order, and reorder outputs.

Third-party weights often order their classes differently from the folder or Parquet file that holds the data. A label
would then mean one class to the teacher and another to the data, and every number made with it would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cudd_core.models.features import last_linear
from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord

MOSTLY, HARDLY = 0.5, 0.25
"""Shares of an exchanged class's images: predicted as the other class (at least), and as their own (at most)."""

_LEAST = 5
"""Images that a class must have to count as exchanged. Of a thousand classes with one image each, a network that
guesses takes dozens for each other in cycles."""


def exchanged_classes(answers: Tensor, labels: Tensor, classes: int) -> dict[int, int]:
    """Return class → predicted class for the classes that a network seems to have exchanged among themselves.

    For each of them, the network predicts one and the same other class for most images and the right class for hardly
    any, and following the predictions from class to class leads back to the start: {a: b, b: a} if two were swapped.
    The mistakes of a network that is merely bad form no such cycle. Classes with fewer than `_LEAST` images tell
    nothing.

    Args:
        answers: int [n], predicted (arg-max) classes.
        labels: int64 [n].
        classes: the number of classes, K.
    """
    counts = torch.bincount(labels, minlength=classes)
    pairs, found = torch.unique(labels * classes + answers, return_counts=True)
    given, taken = pairs // classes, pairs % classes
    shares = found / counts[given]
    own = torch.zeros(classes)
    own[given[given == taken]] = shares[given == taken]
    most = (given != taken) & (shares >= MOSTLY) & (own[given] <= HARDLY) & (counts[given] >= _LEAST)
    other = dict(zip(given[most].tolist(), taken[most].tolist(), strict=True))
    return {label: answer for label, answer in other.items() if _closes(label, other)}


def _closes(label: int, other: dict[int, int]) -> bool:
    """Return whether following `other` from `label` leads back to `label`."""
    place = other[label]
    for _ in other:
        if place == label:
            return True
        if place not in other:
            return False
        place = other[place]
    return False


def in_words(exchanged: dict[int, int], class_names: Sequence[str]) -> str:
    """Return text such as `'cat' for 'dog', 'dog' for 'cat'`, which lists the first `_SHOWN` exchanges."""
    taken = [f"{class_names[label]!r} for {class_names[answer]!r}" for label, answer in exchanged.items()]
    more = f" and {len(taken) - _SHOWN} more" if len(taken) > _SHOWN else ""
    return ", ".join(taken[:_SHOWN]) + more


_SHOWN = 5


def names_of_outputs(class_names: Sequence[str], exchanged: dict[int, int]) -> tuple[str, ...]:
    """Return the class name of each output of a network with these `exchanged` classes."""
    names = list(class_names)
    for label, output in exchanged.items():
        names[output] = class_names[label]
    return tuple(names)


def in_order(network: NetworkRecord, class_names: tuple[str, ...]) -> NetworkRecord:
    """Return the network with its outputs in the order of `class_names`; outputs of other classes are dropped.

    The network is returned unchanged if the order is right already, if one of `class_names` is missing from its own
    class names, if its own names contain a duplicate, or if its outputs do not come from a single final linear layer.
    """
    own = network.spec.class_names
    if own == class_names or not set(class_names) <= set(own) or len(set(own)) != len(own):
        return network
    whole = restore_network(network)
    head = last_linear(whole)
    if head is None or head[1].out_features != len(own):
        return network
    rows = torch.tensor([own.index(name) for name in class_names])
    parameters = {f"{head[0]}.{part}" for part in ("weight", "bias")}
    state = {name: value[rows].clone() if name in parameters else value for name, value in network.state.items()}
    spec = replace(network.spec, num_classes=len(class_names), class_names=class_names)
    ordered = replace(network, spec=spec, state=state)
    images = torch.linspace(-1, 1, 2 * spec.channels * spec.image_size**2)
    images = images.view(2, spec.channels, spec.image_size, spec.image_size)
    with torch.no_grad():
        # Reordering one head is not enough for a network with several.
        same = torch.allclose(restore_network(ordered)(images), whole(images)[:, rows], rtol=1e-3, atol=1e-3)
    return ordered if same else network
