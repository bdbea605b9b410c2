"""φ_j on S_{1:j}, from φ_{j-1}."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cudd_core.compute.runtime import Runtime
from cudd_core.data.label_forms import LabelForm, Storage
from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LabelSource
from cudd_core.errors import Cancelled, DataError, ModelError
from cudd_core.labelling import Teaching
from cudd_core.models.registry import build_network
from cudd_core.progress import CONTINUED
from cudd_core.records import LabelShard, NetworkRecord, SyntheticSet
from cudd_core.stages.relabel import relabel
from cudd_core.stages.train_student import StudentConfig, train_student
from cudd_core.training import TrainingConfig

EPOCHS, BATCH = 6, 5
REPLAY = ReplayConfig(flip=False)


@pytest.fixture(scope="module")
def labels(teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime) -> list[LabelShard]:
    return [relabel(Teaching(teacher), synthetic, e, BATCH, REPLAY, 0, runtime) for e in (range(4), range(4, EPOCHS))]


def config(epochs: int = EPOCHS, **fields: Any) -> StudentConfig:
    return StudentConfig(training=TrainingConfig(epochs=epochs, batch_size=BATCH), **fields)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest distance of two networks' weights; running statistics aside."""
    return max(float((a[k] - b[k]).abs().max()) for k in a if "running" not in k and "num_batches" not in k)


@pytest.mark.parametrize(("epochs", "factor", "warm"), [(1000, 0.5, 500), (7, 0.5, 4), (1, 0.5, 1), (10, 1.0, 10)])
def test_later_students_train_shorter_and_more_gently(epochs: int, factor: float, warm: int) -> None:
    student = config(epochs, warm_epoch_factor=factor)
    assert student.training_of(1) == student.training
    for curriculum in (2, 3, 6):
        later = student.training_of(curriculum)
        assert (later.epochs, later.learning_rate) == (warm, 5e-4)
        same = {"epochs", "learning_rate"}
        assert later.model_dump(exclude=same) == student.training.model_dump(exclude=same)


def test_without_warm_start_every_student_trains_in_full() -> None:
    student = config(warm_start=False)
    assert [student.training_of(j) for j in (1, 2, 5)] == [student.training] * 3


def test_defaults_are_the_paper_s() -> None:
    student = StudentConfig()
    training = student.training
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 1e-3, 0.01)
    assert (student.temperature, student.warm_start, student.warm_epoch_factor) == (20.0, True, 0.5)
    assert student.warm_learning_rate == 5e-4 and not student.train_last


def test_a_warm_start_begins_at_the_previous_student(
    teacher: NetworkRecord, student: NetworkRecord, synthetic: SyntheticSet, labels: list[LabelShard], runtime: Runtime
) -> None:
    """A step so small that it moves no weight shows where training began."""

    def begun(curriculum: int, previous: NetworkRecord | None, **fields: Any) -> dict[str, Tensor]:
        still = config(2, warm_learning_rate=1e-12, **fields)
        still = still.model_copy(update={"training": still.training.model_copy(update={"learning_rate": 1e-12})})
        return train_student(
            synthetic, labels, teacher.spec, previous, curriculum, still, REPLAY, 0, runtime
        ).state  # fmt: skip

    assert difference(begun(2, student), student.state) < 1e-9
    assert difference(begun(2, student, warm_start=False), student.state) > 0.01
    cold = begun(1, None)
    assert difference(cold, student.state) > 0.01 and difference(cold, teacher.state) > 0.01
    assert difference(cold, begun(2, student, warm_start=False)) > 0.01  # each curriculum's own initial weights


def test_a_student_approaches_the_teacher(
    teacher: NetworkRecord, synthetic: SyntheticSet, labels: list[LabelShard], runtime: Runtime
) -> None:
    def train(rate: float, shards: list[LabelShard]) -> NetworkRecord:
        length = TrainingConfig(epochs=EPOCHS, batch_size=BATCH, learning_rate=rate)
        return train_student(
            synthetic, shards, teacher.spec, None, 1, StudentConfig(training=length), REPLAY, 0, runtime
        )  # fmt: skip

    record, unmoved = train(0.02, labels), train(1e-12, labels)
    assert record.spec == teacher.spec and len(record.history) == EPOCHS
    assert record.history[-1]["loss"] < 0.7 * unmoved.history[-1]["loss"]  # of the same pixels
    again = train(0.02, labels[::-1])
    assert all(torch.equal(record.state[k], again.state[k]) for k in record.state)  # also of the order of the shards


def test_another_architecture_and_the_teacher_s_normalisation(
    teacher: NetworkRecord, synthetic: SyntheticSet, labels: list[LabelShard], runtime: Runtime
) -> None:
    other = config(1, arch="convnet1-w4")
    record = train_student(synthetic, labels, teacher.spec, None, 1, other, REPLAY, 0, runtime)
    assert record.spec == replace(teacher.spec, arch="convnet1-w4")
    assert record.state.keys() == build_network("convnet1-w4", 4, 3, 8, seed=0).state_dict().keys()
    with pytest.raises(ModelError, match="do not fit convnet1-w4"):
        train_student(synthetic, labels, teacher.spec, teacher, 2, other, REPLAY, 0, runtime)


def test_a_killed_student_goes_on_to_the_same_bytes(
    teacher: NetworkRecord, student: NetworkRecord, synthetic: SyntheticSet, labels: list[LabelShard],
    runtime: Runtime, tmp_path: Path,
) -> None:  # fmt: skip
    def stop(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == 2:
            raise Cancelled("stop")

    warm = config(checkpoint_every=1)
    arguments = (synthetic, labels, teacher.spec, student, 2, warm, REPLAY, 0, runtime)
    undisturbed = train_student(*arguments)
    assert len(undisturbed.history) == EPOCHS // 2
    with pytest.raises(Cancelled):
        train_student(*arguments, checkpoints=tmp_path, progress=stop)
    told: list[Mapping[str, float]] = []
    resumed = train_student(*arguments, checkpoints=tmp_path, progress=lambda *report: told.append(report[2]))
    assert CONTINUED in told[0], "it began anew"
    assert resumed.history == undisturbed.history
    assert all(torch.equal(resumed.state[k], v) for k, v in undisturbed.state.items())


def test_the_temperature_matters(
    teacher: NetworkRecord, synthetic: SyntheticSet, labels: list[LabelShard], runtime: Runtime
) -> None:
    heads = [
        train_student(synthetic, labels, teacher.spec, None, 1, config(2, temperature=t), REPLAY, 0, runtime).state
        for t in (1.0, 20.0)
    ]
    assert difference(*heads) > 1e-5


@pytest.mark.parametrize(
    ("mix", "reuse", "batch_statistics"),
    [("cutmix", 1, False), ("cutmix", 3, False), ("mixup", 1, False), ("cutmix", 1, True)],
)
def test_a_teacher_that_answers_in_training_gives_the_bytes_of_stored_labels(
    mix: str, reuse: int, batch_statistics: bool, teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    replay = ReplayConfig.model_validate({"mix": mix, "reuse": reuse})
    distinct = range(replay.distinct_epochs(EPOCHS))
    made = [relabel(Teaching(teacher, batch_statistics), synthetic, distinct, BATCH, replay, 0, runtime)]

    def train(source: LabelSource) -> NetworkRecord:
        return train_student(synthetic, source, teacher.spec, None, 1, config(), replay, 0, runtime)

    stored, answered = train(made), train(Teaching(teacher, batch_statistics))
    assert stored.history == answered.history
    assert all(torch.equal(stored.state[k], answered.state[k]) for k in stored.state)


def test_reuse_is_a_training_on_fewer_labels_and_not_a_shorter_one(
    teacher: NetworkRecord, synthetic: SyntheticSet, labels: list[LabelShard], runtime: Runtime
) -> None:
    def train(replay: ReplayConfig) -> NetworkRecord:
        return train_student(synthetic, labels[:1], teacher.spec, None, 1, config(), replay, 0, runtime)

    with pytest.raises(IndexError):  # labels of four epochs for six
        train(REPLAY)
    again = train(REPLAY.model_copy(update={"reuse": 2}))
    assert len(again.history) == EPOCHS


@pytest.mark.parametrize(
    ("images", "batch", "storage", "what"),
    [(5, BATCH, "full", "images"), (5, BATCH, "int8", "images"), (None, 2 * BATCH, "int8", "batches")],
)
def test_labels_of_other_sizes_are_refused(
    teacher: NetworkRecord,
    synthetic: SyntheticSet,
    runtime: Runtime,
    images: int | None,
    batch: int,
    storage: Storage,
    what: str,
) -> None:
    fields = {name: getattr(synthetic, name)[:images] for name in ("images", "labels", "slices", "curricula")}
    other = replace(synthetic, **fields)
    made = relabel(Teaching(teacher), other, range(2), batch, REPLAY, 0, runtime, form=LabelForm(storage))
    with pytest.raises(DataError, match=rf"Labels from epoch 0 on are of \d+ {what}.*has \d+\. Make them by `relabel`"):
        train_student(synthetic, [made], teacher.spec, None, 1, config(2), REPLAY, 0, runtime)
