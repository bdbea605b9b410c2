"""Squeeze: train the teacher θ* of Eq. 2 on T."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cudd_core.class_order import exchanged_classes, in_words, names_of_outputs
from cudd_core.compute.runtime import Runtime
from cudd_core.data.batches import AugmentedBatches
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.data.statistics import spec_for
from cudd_core.errors import ModelError
from cudd_core.measurement import accuracy_of, answers_to
from cudd_core.models.registry import build
from cudd_core.progress import Progress, silent
from cudd_core.records import Accuracy, NetworkRecord, NetworkSpec
from cudd_core.seeding import derive
from cudd_core.teacher import TeacherConfig
from cudd_core.training import Checkpointing, fit

VERSION = 2  # 1 left images unmirrored where `crop` was none, although `flip` is in the key


def train_teacher(
    split: ImageSplit,
    config: TeacherConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpoints: Path | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Train `config.arch` on all of T with hard labels (Eq. 2) and return it after the last epoch."""
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
    """Measure the teacher on the test split, before a bad teacher can waste any work.

    Raises:
        ModelError: the teacher does not fit the data (`check_classes`), its answers show that its classes are in
            another order, or its accuracy is near chance.
    """
    check_classes(teacher.spec, split)
    answers = answers_to(split, teacher, runtime, progress=progress)
    check_order(teacher.spec, answers, split)
    measured = accuracy_of(answers, split)
    chance = 1 / len(split.class_names)
    needed = chance + config.minimum_margin * (1 - chance)
    if measured.accuracy < needed:
        raise ModelError(
            f"The teacher {teacher.spec.arch} is right on {measured.accuracy:.1%} of {len(split)} test images; chance "
            f"is {100 * chance:.3g}% and teacher.minimum_margin asks for {needed:.1%}. The usual reason is a class "
            "order or a normalisation (teacher.mean, teacher.std) that differs between the teacher and the data; "
            "otherwise train the teacher longer."
        )
    return measured


def check_order(spec: NetworkSpec, answers: Tensor, split: ImageSplit) -> None:
    """Raise ModelError if `answers`, int [N], show that the outputs stand for other classes than the data's labels.

    The test labels are used only to detect this, never to reorder the outputs.
    """
    exchanged = exchanged_classes(answers, split.labels, len(split.class_names))
    if not exchanged:
        return
    names = split.class_names
    meant = torch.tensor([exchanged.get(label, label) for label in range(len(names))])[split.labels]
    now, then = (float((answers == labels).double().mean()) for labels in (split.labels, meant))
    outputs = json.dumps(names_of_outputs(names, exchanged), ensure_ascii=False)
    setting = f"'teacher.class_names={outputs}'" if len(names) <= _LISTED else "teacher.class_names"
    raise ModelError(
        f"The teacher {spec.arch} takes most test images of {in_words(exchanged, names)}: its outputs seem to be in "
        f"another order of classes than the data. With these exchanged it would be right on {then:.1%} instead of "
        f"{now:.1%} of the images. If so, say with teacher.class_order=by_name what its outputs stand for, in their "
        f"order: {setting}."
    )


_LISTED = 20
"""The most classes that an error message lists."""


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
                advice = "This architecture's outputs cannot be put in order: give the data's classes theirs."
            raise ModelError(
                f"Class {index} is {theirs!r} for the teacher {spec.arch} but {ours!r} in the data: the class order "
                f"differs. {advice}"
            )
