"""Training a teacher, and what is checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cudd_core.class_order import in_order
from cudd_core.compute.runtime import Runtime
from cudd_core.data import statistics
from cudd_core.data.memory import ArraySplit
from cudd_core.data.statistics import channel_statistics
from cudd_core.errors import Cancelled, ModelError
from cudd_core.measurement import measure
from cudd_core.records import NetworkRecord
from cudd_core.stages.squeeze import check_classes, preflight, train_teacher
from cudd_core.teacher import TeacherConfig


class Watched:
    """A split that remembers which images were asked for."""

    def __init__(self, split: ArraySplit) -> None:
        self.split, self.asked = split, list[Tensor]()
        self.labels, self.class_names, self.digest = split.labels, split.class_names, split.digest
        self.channels, self.image_size = split.channels, split.image_size

    def __len__(self) -> int:
        return len(self.split)

    def images(self, indices: Tensor) -> Tensor:
        self.asked.append(indices)
        return self.split.images(indices)


def short(config: TeacherConfig, epochs: int = 2, **fields: object) -> TeacherConfig:
    return config.model_copy(
        update={"training": config.training.model_copy(update={"epochs": epochs, **fields})},
    )


def test_channel_statistics_are_those_of_all_pixels(split: ArraySplit) -> None:
    mean, std = channel_statistics(split, seed=0)
    pixels = split.pixels.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), atol=6e-5)


def test_channel_statistics_of_a_large_split_are_those_of_a_sample(
    split: ArraySplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_MOST", 30)
    watched = Watched(split)
    mean, std = channel_statistics(watched, seed=0)
    asked = torch.cat(watched.asked)
    assert len(asked.unique()) == len(asked) == 30
    pixels = split.pixels[asked].numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), atol=6e-5)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), atol=6e-5)
    assert channel_statistics(split, 0) == (mean, std) != channel_statistics(split, 1)


def test_a_constant_channel_can_be_divided_by() -> None:
    flat = ArraySplit(torch.full((3, 1, 8, 8), 51, dtype=torch.uint8), torch.tensor([0, 1, 1]), ("a", "b"))
    assert channel_statistics(flat, 0) == ((0.2,), (0.001,))


def test_the_teacher_learns_and_knows_what_it_was_trained_on(
    teacher: NetworkRecord, split: ArraySplit, test_split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    assert measure(teacher, test_split, runtime).accuracy > 0.9
    assert preflight(teacher, test_split, teacher_config, runtime).n == len(test_split)
    assert teacher.spec.class_names == split.class_names and teacher.spec.num_classes == 4
    assert (teacher.spec.mean, teacher.spec.std) == channel_statistics(split, 0)
    assert len(teacher.history) == teacher_config.training.epochs
    assert teacher.history[-1]["loss"] < teacher.history[0]["loss"]


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_the_same_seed_gives_the_same_teacher(
    crop: Literal["pad", "resized", "none"], split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    config = short(teacher_config, 1).model_copy(update={"crop": crop})
    first, again, other = (train_teacher(split, config, seed, runtime) for seed in (0, 0, 1))
    assert all(torch.equal(first.state[name], again.state[name]) for name in first.state)
    assert not torch.equal(first.state["head.weight"], other.state["head.weight"])


def test_crop_and_flip_change_what_is_learnt(
    split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    fields: list[dict[str, object]] = [{"crop": "pad"}, {"crop": "resized"}, {"crop": "none"}, {"flip": True}]
    configs = [short(teacher_config, 1).model_copy(update=update) for update in fields]
    heads = [train_teacher(split, config, 0, runtime).state["head.weight"] for config in configs]
    assert all(not torch.equal(a, b) for i, a in enumerate(heads) for b in heads[:i])


def test_an_epoch_sees_each_image_once_in_a_new_order(
    split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    watched = Watched(split)
    train_teacher(watched, short(teacher_config, 2, batch_size=48), 0, runtime)
    batches = [b for b in watched.asked if len(b) == 48]
    assert len(batches) == 6  # 160 = 3 · 48 + 16: the rest of an epoch is left out
    epochs = [torch.cat(batches[:3]), torch.cat(batches[3:])]
    assert all(len(epoch.unique()) == 144 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_a_batch_is_never_larger_than_the_split(
    split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    record = train_teacher(split, short(teacher_config, 1, batch_size=1000), 0, runtime)
    assert len(record.history) == 1 and np.isfinite(record.history[0]["loss"])


def test_a_killed_teacher_goes_on_to_the_same_bytes(
    split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime, tmp_path: Path
) -> None:
    config = short(teacher_config, 3).model_copy(update={"flip": True})

    def stop(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == 2:
            raise Cancelled("stop")

    undisturbed = train_teacher(split, config, 0, runtime)
    with pytest.raises(Cancelled):
        train_teacher(split, config, 0, runtime, checkpoints=tmp_path, progress=stop)
    resumed = train_teacher(split, config, 0, runtime, checkpoints=tmp_path)
    assert resumed.history == undisturbed.history
    assert all(torch.equal(resumed.state[name], value) for name, value in undisturbed.state.items())


def test_a_teacher_near_chance_is_refused(
    teacher: NetworkRecord, test_split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = test_split.labels[torch.randperm(len(test_split), generator=generator)]
    shuffled = ArraySplit(test_split.pixels, labels, test_split.class_names)
    with pytest.raises(ModelError, match=r"convnet2-w8 is right on .* of 80 test images; chance is 25%.*40\.0%"):
        preflight(teacher, shuffled, teacher_config, runtime)


def test_outputs_in_another_order_are_refused_with_what_puts_them_right(
    teacher: NetworkRecord, test_split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    """Two of four classes exchanged leave half of the accuracy, far above chance: nothing else would notice."""
    order = torch.tensor([0, 2, 1, 3])
    swapped = ArraySplit(test_split.pixels, order[test_split.labels], test_split.class_names)
    assert measure(teacher, swapped, runtime).accuracy > 0.4
    words = (
        r"takes most test images of 'blue' for 'cyan', 'cyan' for 'blue'.*right on .*% instead of .*"
        r'teacher\.class_names=\["amber", "cyan", "blue", "dove"\]'
    )
    with pytest.raises(ModelError, match=words):
        preflight(teacher, swapped, teacher_config, runtime)
    told = replace(teacher, spec=replace(teacher.spec, class_names=("amber", "cyan", "blue", "dove")))
    found = preflight(in_order(told, swapped.class_names), swapped, teacher_config, runtime)
    assert found.right.equal(measure(teacher, test_split, runtime).right)


def test_the_margin_lies_between_chance_and_perfect(
    teacher: NetworkRecord, test_split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    """With half the labels wrong, accuracy is near ½: a third of the way from ¼ to 1."""
    labels = test_split.labels.clone()
    labels[::2] = (labels[::2] + 1) % 4
    half = ArraySplit(test_split.pixels, labels, test_split.class_names)
    accuracy = measure(teacher, half, runtime).accuracy
    assert 0.4 < accuracy < 0.6
    exact = (accuracy - 0.25) / 0.75
    preflight(teacher, half, teacher_config.model_copy(update={"minimum_margin": exact - 0.01}), runtime)
    with pytest.raises(ModelError, match="chance"):
        preflight(teacher, half, teacher_config.model_copy(update={"minimum_margin": exact + 0.01}), runtime)


def test_agreement_is_accepted(teacher: NetworkRecord, split: ArraySplit) -> None:
    check_classes(teacher.spec, split)


def test_differences_between_teacher_and_data_are_named(
    teacher: NetworkRecord, split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime
) -> None:
    spec = teacher.spec
    swapped = ("amber", "cyan", "blue", "dove")
    for other, words in (
        (
            replace(spec, class_names=swapped),
            r"Class 1 is 'cyan' for the teacher convnet2-w8 but 'blue' in the data: the class order",
        ),
        (
            replace(spec, num_classes=5, class_names=(*spec.class_names, "e")),
            "convnet2-w8 knows 5 classes but the data has 4",
        ),
        (replace(spec, channels=1), r"convnet2-w8 takes 1 channel\(s\) but the data has 3.*data\.channels"),
        (replace(spec, image_size=16), r"convnet2-w8 takes 16 px images but data\.image_size is 8"),
    ):
        with pytest.raises(ModelError, match=words):
            check_classes(other, split)
        with pytest.raises(ModelError, match=words):  # before anything is measured
            preflight(NetworkRecord(other, teacher.state), split, teacher_config, runtime)
