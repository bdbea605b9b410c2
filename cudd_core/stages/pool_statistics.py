"""Statistics of a curriculum's pool R(θ*) ∩ W(φ_{j-1}) at the teacher's BatchNorm layers, a target for L_bn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cudd_core.compute.runtime import Runtime
from cudd_core.data.source import ImageSplit
from cudd_core.errors import DataError
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.registry import restore_network
from cudd_core.prediction import logits_of, views_of
from cudd_core.progress import Progress, silent
from cudd_core.records import LayerStatistics, NetworkRecord, Verdicts

VERSION = 1


def pool_of(labels: Tensor, teacher: Sequence[Verdicts], student: Sequence[Verdicts]) -> Tensor:
    """Return R(θ*) ∩ W(φ) over the class blocks of the verdicts, as ascending positions int64 [m].

    It is R(θ*) if there are no verdicts of a student, or if the student gets everything right that the teacher does.
    """
    right = _correct(labels, teacher)
    hard = right & ~_correct(labels, student)
    return (hard if bool(hard.any()) else right).nonzero().flatten()


@torch.no_grad()
def pool_statistics(
    teacher: NetworkRecord,
    verdicts: Sequence[Verdicts],
    student: Sequence[Verdicts],
    split: ImageSplit,
    runtime: Runtime,
    *,
    progress: Progress = silent,
) -> LayerStatistics:
    """Return the mean and biased variance of each BatchNorm's input over the pool: centre view, teacher in eval mode.

    L_bn sees synthetic images in the same way: layers normalise with their running statistics, and the inputs that
    reach each of them are compared. `verdicts` are the teacher's and `student` those of φ_{j-1} (none at j = 1), one
    per class block.

    Raises:
        DataError: the teacher is wrong on every image.
        ModelError: the teacher has no BatchNorm.
    """
    pool = pool_of(split.labels, verdicts, student)
    if len(pool) == 0:
        raise DataError("The teacher is wrong on every training image. Check its class order and normalisation.")
    network, views = restore_network(teacher), views_of(split, teacher.spec, runtime)
    sums: list[tuple[Tensor, Tensor]] = []
    with BatchNormInputs(network, teacher.spec.arch) as inputs:
        for _, logits in logits_of(network, views, pool, runtime, progress=progress):
            # All images have the same number of pixels in a layer, so each batch is weighted by its number of images.
            moments = [
                (len(logits) * mean.double(), len(logits) * (variance.double() + mean.double().square()))
                for mean, variance in inputs.collect()
            ]
            sums = [(a + c, b + d) for (a, b), (c, d) in zip(sums, moments, strict=True)] if sums else moments
    means = [first / len(pool) for first, _ in sums]
    variances = [second / len(pool) - mean.square() for (_, second), mean in zip(sums, means, strict=True)]
    pairs = [(m.float().cpu(), v.clamp_min(0).float().cpu()) for m, v in zip(means, variances, strict=True)]
    return LayerStatistics.of(pairs, len(pool))


def _correct(labels: Tensor, verdicts: Sequence[Verdicts]) -> Tensor:
    correct = torch.zeros(len(labels), dtype=torch.bool)
    for block in verdicts:
        correct |= block.correct(labels)
    return correct
