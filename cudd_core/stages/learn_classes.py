"""Learn classes: train a fresh network for the classes seen so far, on their synthetic images alone (Fig. 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cudd_core.compute.runtime import Runtime
from cudd_core.data.replay import ReplayConfig, Views
from cudd_core.data.subset import set_of_classes
from cudd_core.distillation import LossConfig, train_on_set
from cudd_core.labelling import TeacherLabels, Teaching
from cudd_core.models.registry import build
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, SyntheticSet
from cudd_core.seeding import derive
from cudd_core.training import Checkpointing, TrainingConfig

VERSION = 1


class SeenLabels(TeacherLabels):
    """The teacher's logits restricted to `classes`, as labels computed during training instead of stored.

    Their softmax is the teacher's distribution given that the image belongs to one of these classes,
    p(y | x, y ∈ classes): what a teacher could say before any other classes arrived. All its logits together would
    reveal something about classes still to come.
    """

    def __init__(self, teaching: Teaching, classes: tuple[int, ...], runtime: Runtime) -> None:
        super().__init__(teaching, runtime)
        self._classes = torch.tensor(classes, device=runtime.device)

    def of(self, epoch: int, views: Views) -> Iterator[Tensor]:
        """Return an iterator over the batches' labels, float16 [b, classes]."""
        return (logits[:, self._classes] for logits in super().of(epoch, views))


def learn_classes(
    synthetic: SyntheticSet,
    teaching: Teaching,
    classes: tuple[int, ...],
    arch: str,
    number: int,
    training: TrainingConfig,
    loss: LossConfig,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Return the `number`-th fresh `arch` with an output for each of `classes` (ascending), after its last epoch.

    The network is fresh at every step, as in GDumb (Prabhu et al., ECCV 2020), so that the result measures the images
    kept so far, not how well a network avoids forgetting. With all classes it is, bit for bit, the network that
    `train_network` trains on the teacher's labels.
    """
    known = teaching.teacher.spec
    spec = replace(
        known,
        arch=arch,
        num_classes=len(classes),
        class_names=tuple(known.class_names[label] for label in classes),
    )
    network = build(spec, derive(seed, "evaluate", number))
    seen, labels = set_of_classes(synthetic, classes), SeenLabels(teaching, classes, runtime)
    return train_on_set(
        network,
        spec,
        seen,
        labels,
        training,
        loss,
        replay,
        seed,
        runtime,
        checkpointing=checkpointing,
        progress=progress,
    )
