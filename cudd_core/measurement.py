"""How right a network is."""

from __future__ import annotations

import torch

from cudd_core.data.augment import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.models.registry import restore_network
from cudd_core.progress import Progress, silent
from cudd_core.records import Accuracy, NetworkRecord
from cudd_core.runtime import Runtime
from cudd_core.training import predict


def measure(network: NetworkRecord, split: ImageSplit, runtime: Runtime, *, progress: Progress = silent) -> Accuracy:
    """Return the accuracy of a network on all of `split`: centre view, no augmentation, eval mode."""
    normalizer = Normalizer(network.spec.mean, network.spec.std)
    answers = predict(
        restore_network(network),
        lambda indices: normalizer(split.images(indices)),
        torch.arange(len(split)),
        runtime,
        progress=progress,
    )
    return Accuracy(float((answers == split.labels).double().mean()), len(split))
