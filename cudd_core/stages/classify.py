"""Classify: what a network answers for T, the feedback evaluation of Sec. II-B."""

from __future__ import annotations

from cudd_core.compute.runtime import Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.models.registry import restore_network
from cudd_core.prediction import predict
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, Verdicts

VERSION = 1


def classify(
    network: NetworkRecord, split: ImageSplit, classes: range, runtime: Runtime, *, progress: Progress = silent
) -> Verdicts:
    """Return the arg-max class of every sample of `classes`: centre view, no augmentation, eval mode."""
    inside = (split.labels >= classes.start) & (split.labels < classes.stop)
    indices = inside.nonzero().flatten()
    normalizer = Normalizer.of(network.spec, runtime.device)
    predicted = predict(
        restore_network(network), lambda i: normalizer(split.images(i)), indices, runtime, progress=progress
    )
    return Verdicts(indices=indices, predicted=predicted)
