"""The accuracy of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cudd_core.compute.runtime import Runtime
from cudd_core.compute.transfer import upload
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.errors import DataError
from cudd_core.models.registry import restore_network
from cudd_core.prediction import PREDICTED_TOGETHER, logits_of, predict, views_of
from cudd_core.progress import Progress, silent
from cudd_core.records import Accuracies, Accuracy, NetworkRecord


def measure(network: NetworkRecord, split: ImageSplit, runtime: Runtime, *, progress: Progress = silent) -> Accuracy:
    """Return the accuracy of a network on all of `split`. Raises as `answers_to`."""
    return accuracy_of(answers_to(split, network, runtime, progress=progress), split)


def answers_to(split: ImageSplit, network: NetworkRecord, runtime: Runtime, *, progress: Progress = silent) -> Tensor:
    """Return the class that a network predicts for each image of `split`, int32 [N]: centre view, eval mode.

    Raises:
        DataError: the split has no images.
    """
    _check_images(split)
    views, everything = views_of(split, network.spec, runtime), torch.arange(len(split))
    return predict(restore_network(network), views, everything, runtime, progress=progress)


def accuracy_of(answers: Tensor, split: ImageSplit) -> Accuracy:
    """Return the accuracy of `answers`, the predicted classes of all images of `split`, int [N]."""
    classes = len(split.class_names)
    right = split.labels[answers == split.labels]
    return Accuracy(torch.bincount(right, minlength=classes), torch.bincount(split.labels, minlength=classes))


def measure_together(
    networks: Sequence[NetworkRecord], split: ImageSplit, runtime: Runtime, *, progress: Progress = silent
) -> Accuracies:
    """Return the accuracies that `measure` would find for each network, reading each image of the split only once.

    Worthwhile where images are expensive to read, because they are decoded or corrupted on every access.
    """
    _check_images(split)
    restored = [(restore_network(each), Normalizer.of(each.spec, runtime.device)) for each in networks]
    right = torch.zeros(len(networks), dtype=torch.int64, device=runtime.device)
    for start in range(0, len(split), PREDICTED_TOGETHER):
        indices = torch.arange(start, min(start + PREDICTED_TOGETHER, len(split)))
        images, labels = (upload(each, runtime.device) for each in (split.images(indices), split.labels[indices]))
        for row, (network, normalizer) in enumerate(restored):
            right[row] += (_answers(network, normalizer(images), runtime) == labels).sum()
        progress(int(indices[-1]) + 1, len(split), {})
    return Accuracies(right.cpu().double() / len(split), len(split))


def _check_images(split: ImageSplit) -> None:
    if len(split) == 0:
        raise DataError("There are no test images of these classes to measure on. Check data.test_split.")


def _answers(network: nn.Module, images: Tensor, runtime: Runtime) -> Tensor:
    """Return the arg-max class of one batch of normalised images [n, C, H, W], int64 [n], on their device."""
    ((_, logits),) = logits_of(network, lambda _: images, torch.arange(len(images)), runtime)
    return logits.argmax(1)
