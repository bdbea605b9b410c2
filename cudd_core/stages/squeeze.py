"""Squeeze: train the teacher θ* of Eq. 2 on T."""

from __future__ import annotations

from pathlib import Path

from torch.nn.functional import cross_entropy

from cudd_core.compute.runtime import Runtime
from cudd_core.data.batches import AugmentedBatches
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.data.statistics import spec_for
from cudd_core.errors import ModelError
from cudd_core.measurement import measure
from cudd_core.models.registry import build
from cudd_core.progress import Progress, silent
from cudd_core.records import Accuracy, NetworkRecord, NetworkSpec
from cudd_core.seeding import derive
from cudd_core.teacher import TeacherConfig
from cudd_core.training import Checkpointing, fit

VERSION = 1


def train_teacher(
    split: ImageSplit,
    config: TeacherConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpoints: Path | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Train `config.arch` on all of T with hard labels (Eq. 2) and return it, last epoch."""
    spec = spec_for(config.arch, split, seed)
    network = build(spec, derive(seed, "squeeze", "network"))
    history = fit(
        network,
        AugmentedBatches(
            split,
            Normalizer.of(spec, runtime.device),
            config.training.batch_size,
            config.crop,
            config.flip,
            seed,
            ("squeeze",),
            runtime,
        ),
        cross_entropy,
        config.training,
        runtime,
        checkpointing=Checkpointing(checkpoints, every=1) if checkpoints else None,
        progress=progress,
    )
    return NetworkRecord.of(network, spec, history)


def preflight(
    teacher: NetworkRecord, split: ImageSplit, config: TeacherConfig, runtime: Runtime, *, progress: Progress = silent
) -> Accuracy:
    """Measure the teacher on the test split before any work that would be lost.

    Raises:
        ModelError: class names that differ in number or order, or an accuracy near chance.
    """
    check_classes(teacher.spec, split)
    measured = measure(teacher, split, runtime, progress=progress)
    chance = 1 / len(split.class_names)
    needed = chance + config.minimum_margin * (1 - chance)
    if measured.accuracy < needed:
        raise ModelError(
            f"The teacher {teacher.spec.arch} is right on {measured.accuracy:.1%} of {len(split)} test images; chance "
            f"is {chance:.1%} and teacher.minimum_margin asks for {needed:.1%}. The usual reason is a class order or a "
            "normalisation (teacher.mean, teacher.std) that differs between the teacher and the data; otherwise train "
            "the teacher longer."
        )
    return measured


def check_classes(spec: NetworkSpec, split: ImageSplit) -> None:
    """Raise ModelError unless network and data agree on number, names and order of classes, channels and size."""
    if spec.channels != split.channels:
        raise ModelError(
            f"The teacher {spec.arch} takes {spec.channels} channel(s) but the data has {split.channels}. "
            "Set data.channels to the teacher's, or choose another teacher."
        )
    if spec.image_size != split.image_size:
        raise ModelError(
            f"The teacher {spec.arch} takes {spec.image_size} px images but data.image_size is {split.image_size}."
        )
    if spec.num_classes != len(split.class_names):
        raise ModelError(
            f"The teacher {spec.arch} knows {spec.num_classes} classes but the data has {len(split.class_names)}. "
            "Choose the teacher that was trained on these classes."
        )
    for index, (ours, theirs) in enumerate(zip(split.class_names, spec.class_names, strict=True)):
        if ours != theirs:
            advice = "Give the teacher's order in teacher.class_names, or rename the data's classes."
            if sorted(split.class_names) == sorted(spec.class_names):
                advice = "Give the data's classes the order of the teacher's outputs: number them or name them so."
            raise ModelError(
                f"Class {index} is {theirs!r} for the teacher {spec.arch} but {ours!r} in the data: the class order "
                f"differs. {advice}"
            )
