"""Features: the training images in a network's feature space, for selection by geometry."""

from __future__ import annotations

from cudd_core.compute.runtime import Runtime
from cudd_core.data.labels import positions_of
from cudd_core.data.source import ImageSplit
from cudd_core.models.registry import restore_network
from cudd_core.prediction import head_inputs, views_of
from cudd_core.progress import Progress, silent
from cudd_core.records import Features, NetworkRecord

VERSION = 1


def features(
    network: NetworkRecord, split: ImageSplit, classes: range, runtime: Runtime, *, progress: Progress = silent
) -> Features:
    """Return the input of the classifier's head for every sample with a label in `classes`: centre view, eval mode.

    Raises:
        ModelError: the network has no linear head.
    """
    indices, views = positions_of(split.labels, classes), views_of(split, network.spec, runtime)
    found = head_inputs(restore_network(network), network.spec.arch, views, indices, runtime, progress=progress)
    return Features(indices=indices, features=found)
