"""Classify: a network's predictions on T, the feedback evaluation of Sec. II-B."""

from __future__ import annotations

from cudd_core.compute.runtime import Runtime
from cudd_core.data.labels import positions_of
from cudd_core.data.source import ImageSplit
from cudd_core.models.registry import restore_network
from cudd_core.prediction import predict, views_of
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, Verdicts

VERSION = 1


def classify(
    network: NetworkRecord, split: ImageSplit, classes: range, runtime: Runtime, *, progress: Progress = silent
) -> Verdicts:
    """Return the arg-max class of every sample with a label in `classes`: centre view, no augmentation, eval mode."""
    indices, views = positions_of(split.labels, classes), views_of(split, network.spec, runtime)
    predicted = predict(restore_network(network), views, indices, runtime, progress=progress)
    return Verdicts(indices=indices, predicted=predicted)
