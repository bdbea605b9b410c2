"""Features: where the training images lie in a network's feature space, for selection by geometry."""

from __future__ import annotations

import torch

from cudd_core.data.augment import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.models.features import HeadInput
from cudd_core.models.registry import restore_network
from cudd_core.progress import Progress, silent
from cudd_core.records import Features, NetworkRecord
from cudd_core.runtime import Runtime
from cudd_core.training import predict

VERSION = 1


def features(
    network: NetworkRecord, split: ImageSplit, classes: range, runtime: Runtime, *, progress: Progress = silent
) -> Features:
    """Return the input of the classifier's head for every sample of `classes`: centre view, eval mode.

    Raises:
        ModelError: a network without a linear head.
    """
    inside = (split.labels >= classes.start) & (split.labels < classes.stop)
    indices = inside.nonzero().flatten()
    normalizer = Normalizer(network.spec.mean, network.spec.std)
    restored = restore_network(network)
    collected: list[torch.Tensor] = []

    def collect(done: int, total: int, metrics: object) -> None:
        collected.append(head.collect().cpu())
        progress(done, total, {})

    with HeadInput(restored, network.spec.arch) as head:
        predict(restored, lambda i: normalizer(split.images(i)), indices, runtime, progress=collect)
    return Features(indices=indices, features=torch.cat(collected) if collected else torch.empty(0, 0))
