"""Relabel: the teacher's logits of every augmented, mixed batch that training will see."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from cudd_core.configuration import Switch
from cudd_core.data.replay import Replay, ReplayConfig
from cudd_core.models.batchnorm import use_batch_statistics
from cudd_core.models.registry import restore_network
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, SoftLabels, SyntheticSet
from cudd_core.runtime import Runtime

VERSION = 1


class RelabelConfig(ReplayConfig):
    """The augmentation, how the teacher sees it, and how many epochs one task labels."""

    batchnorm: Annotated[Literal["eval", "batch"], Switch()] = Field(
        "eval", description="The teacher's BatchNorm uses its running statistics, or each batch's own (CV-DD)."
    )
    epochs_per_shard: int = Field(100, ge=1, description="Epochs whose labels one task makes.")


@torch.no_grad()
def relabel(
    teacher: NetworkRecord,
    synthetic: SyntheticSet,
    epochs: range,
    batch_size: int,
    config: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    batch_statistics: bool = False,
    progress: Progress = silent,
) -> SoftLabels:
    """Return float16 logits [E, n, K] of the teacher in eval mode for `epochs` of the replay.

    With `batch_statistics` its BatchNorm layers, and they alone, normalise by each batch as in training.

    Raises:
        ModelError: `batch_statistics` of a teacher without BatchNorm.
    """
    replay = Replay(synthetic, teacher.spec, config, batch_size, seed, runtime)
    network = runtime.network(restore_network(teacher))
    if batch_statistics:
        use_batch_statistics(network, teacher.spec.arch)
    logits = torch.empty(len(epochs), len(synthetic.labels), teacher.spec.num_classes, dtype=torch.float16)
    for row, epoch in enumerate(epochs):
        for (start, stop), images in zip(replay.bounds, replay.batches(epoch), strict=True):
            with runtime.autocast():
                answer = network(images)
            logits[row, start:stop] = answer.to("cpu", torch.float16)
        progress(row + 1, len(epochs), {})
    return SoftLabels(logits=logits, first_epoch=epochs.start)
