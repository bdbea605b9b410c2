"""Learn classes: a fresh network for the classes seen so far, from their synthetic images alone (Fig. 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from cudd_core.data.replay import Replay, ReplayConfig
from cudd_core.data.subset import set_of_classes
from cudd_core.losses.soft_label import soft_label
from cudd_core.models.registry import build_network, restore_network
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, SyntheticSet
from cudd_core.runtime import Runtime
from cudd_core.seeding import derive
from cudd_core.training import Checkpointing, TrainingConfig, fit

VERSION = 1


class TaughtReplay:
    """A replay whose labels the teacher gives when a batch comes: float16, as `relabel` would have stored them.

    Logits are restricted to `classes`. A softmax over them is the teacher's distribution given that the image is of one
    of these classes, p(y | x, y ∈ classes): what a teacher knows that was asked before other classes came. With all
    its logits, the labels would tell of classes to come.
    """

    def __init__(self, replay: Replay, teacher: NetworkRecord, classes: tuple[int, ...]) -> None:
        self.replay, self.steps_per_epoch = replay, replay.steps_per_epoch
        self._teacher = replay.runtime.network(restore_network(teacher)).eval()
        self._classes = torch.tensor(classes, device=replay.runtime.device)

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs, teacher logits float16 [b, classes]) of one epoch."""
        for images in self.replay.batches(number):
            with torch.no_grad(), self.replay.runtime.autocast():
                logits = self._teacher(images)
            yield images, logits[:, self._classes].to(torch.float16)


def learn_classes(
    synthetic: SyntheticSet,
    teacher: NetworkRecord,
    classes: tuple[int, ...],
    arch: str,
    number: int,
    training: TrainingConfig,
    temperature: float,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Return the `number`-th fresh `arch` with an output for each of `classes` (ascending), at its last epoch.

    Fresh at every step, as in GDumb (Prabhu et al., ECCV 2020): what is measured is the images kept so far, not how
    well a network was kept from forgetting. With all classes it is, bit for bit, the network that `train_network`
    trains on stored labels.
    """
    spec = replace(
        teacher.spec,
        arch=arch,
        num_classes=len(classes),
        class_names=tuple(teacher.spec.class_names[label] for label in classes),
    )
    network = build_network(arch, spec.num_classes, spec.channels, spec.image_size, derive(seed, "evaluate", number))
    seen = set_of_classes(synthetic, classes)
    batches = TaughtReplay(Replay(seen, spec, replay, training.batch_size, seed, runtime), teacher, classes)
    history = fit(
        network,
        batches,
        lambda logits, targets: soft_label(logits, targets, temperature),
        training,
        runtime,
        checkpointing=checkpointing,
        progress=progress,
    )
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    return NetworkRecord(spec, state, tuple(history))
