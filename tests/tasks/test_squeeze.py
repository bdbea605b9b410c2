"""The task that loads a teacher, on a real store. Training one is part of the flow's test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cudd_core.compute.runtime import ComputeConfig
from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.errors import ConfigError, ModelError
from cudd_core.models.registry import build_network
from cudd_core.records import Accuracy, NetworkRecord
from cudd_core.stages.squeeze import train_teacher
from cudd_core.teacher import TeacherConfig
from cudd_core.training import TrainingConfig
from tasks.context import DataRef, StageContext
from tasks.measure import preflight
from tasks.refs import Ref
from tasks.squeeze import squeeze
from tasks.stage import fetch
from tasks.store import Store

ARCH = "convnet1-w4"
DIGITS = tuple(str(label) for label in range(10))


@pytest.fixture
def context(store: Store) -> StageContext:
    config = DataConfig(source="digits", channels=1, image_size=8, limit_per_class=5)
    train, test = open_split(config, "train"), open_split(config, "test")
    data = DataRef(config, train.digest, test.digest, len(train.class_names))
    return StageContext(store, data, ComputeConfig(), 0, "pipeline")


def write_weights(path: Path, *, seed: int = 0, classes: tuple[str, ...] = DIGITS, arch: str = ARCH) -> dict[str, Any]:
    state = {
        name: value.contiguous() for name, value in build_network(arch, len(classes), 1, 8, seed).state_dict().items()
    }
    about = {"class_names": json.dumps(classes), "mean": "[0.25]", "std": "[0.5]"}
    save_file(state, path, metadata=about)
    return state


def from_file(path: Path, **fields: Any) -> TeacherConfig:
    return TeacherConfig(source="file", arch=ARCH, weights=str(path), **fields)


def ref_of(state: Any) -> Ref:
    ref = state.data
    assert isinstance(ref, Ref)
    return ref


def stage_runs(store: Store) -> list[Ref]:
    """What came to something; attempts that failed are kept too, with their reason."""
    return [each.ref for each in store.ledger().attempts if each.ref is not None]


def test_file_gives_its_own_network_and_metadata(context: StageContext, tmp_path: Path) -> None:
    written = write_weights(tmp_path / "teacher.safetensors")
    state = squeeze.fn(context, from_file(tmp_path / "teacher.safetensors"))
    assert state.name == "Completed"
    record = context.store.fetch(ref_of(state))
    assert isinstance(record, NetworkRecord)
    assert (record.spec.class_names, record.spec.mean, record.spec.std) == (DIGITS, (0.25,), (0.5,))
    assert record.state.keys() == written.keys()
    assert all(torch.equal(record.state[name], value) for name, value in written.items())


def test_configuration_wins_over_metadata(context: StageContext, tmp_path: Path) -> None:
    write_weights(tmp_path / "teacher.safetensors")
    plain = ref_of(squeeze.fn(context, from_file(tmp_path / "teacher.safetensors")))
    ref = ref_of(squeeze.fn(context, from_file(tmp_path / "teacher.safetensors", mean=(0.125,))))
    record = context.store.fetch(ref)
    assert isinstance(record, NetworkRecord) and record.spec.mean == (0.125,)
    assert ref.key != plain.key and ref.digest != plain.digest


def test_content_counts_and_place_does_not(context: StageContext, tmp_path: Path) -> None:
    here, there = tmp_path / "teacher.safetensors", tmp_path / "moved" / "other-name.safetensors"
    write_weights(here)
    there.parent.mkdir()
    # Written twice, the same weights may be other bytes: safetensors does not order its metadata.
    shutil.copy(here, there)
    first = squeeze.fn(context, from_file(here))
    moved = squeeze.fn(context, from_file(there))
    assert (moved.name, ref_of(moved).key, ref_of(moved).run_id) == (
        "Reused",
        ref_of(first).key,
        ref_of(first).run_id,
    )
    write_weights(here, seed=1)
    changed = squeeze.fn(context, from_file(here))
    assert changed.name == "Completed"
    assert ref_of(changed).key != ref_of(first).key and ref_of(changed).digest != ref_of(first).digest


def test_training_settings_do_not_count_for_a_file(context: StageContext, tmp_path: Path) -> None:
    write_weights(tmp_path / "teacher.safetensors")
    plain = from_file(tmp_path / "teacher.safetensors")
    squeeze.fn(context, plain)
    training = plain.training.model_copy(update={"epochs": 1})
    other = plain.model_copy(update={"training": training, "flip": False, "crop": "none", "minimum_margin": 0.9})
    assert squeeze.fn(context, other).name == "Reused"


def bad_suffix(folder: Path) -> Path:
    (folder / "teacher.pt").write_bytes(b"a pickle")
    return folder / "teacher.pt"


def not_safetensors(folder: Path) -> Path:
    (folder / "teacher.safetensors").write_bytes(b"no header at all")
    return folder / "teacher.safetensors"


def other_network(folder: Path) -> Path:
    write_weights(folder / "teacher.safetensors", arch="convnet1-w8")
    return folder / "teacher.safetensors"


def no_metadata(folder: Path) -> Path:
    save_file({"a": torch.zeros(1)}, folder / "teacher.safetensors")
    return folder / "teacher.safetensors"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: folder / "none.safetensors", ModelError, r"teacher\.weights: there is no file .*none"),
        (bad_suffix, ModelError, r"teacher\.weights: .*teacher\.pt is not a \.safetensors file"),
        (not_safetensors, ModelError, r"teacher\.weights: .*teacher\.safetensors cannot be read"),
        (other_network, ModelError, r"do not fit convnet1-w4 with 10 classes at 8 px"),
        (no_metadata, ConfigError, r"teacher\.class_names is needed"),
    ],
)
def test_files_that_cannot_be_used(
    make: Callable[[Path], Path], error: type[Exception], message: str, context: StageContext, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        squeeze.fn(context, from_file(make(tmp_path)))
    assert stage_runs(context.store) == []


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((*DIGITS[:8], "nine", "8"), r"Class 8 is 'nine' for the teacher convnet1-w4 but '8' in the data"),
        ((*DIGITS[:9], "nine", "ten"), r"The teacher convnet1-w4 knows 11 classes but the data has 10"),
    ],
)
def test_preflight_refuses_other_classes(
    classes: tuple[str, ...], message: str, context: StageContext, tmp_path: Path
) -> None:
    write_weights(tmp_path / "teacher.safetensors", classes=classes)
    config = from_file(tmp_path / "teacher.safetensors", minimum_margin=0)
    ref = ref_of(squeeze.fn(context, config))
    with pytest.raises(ModelError, match=message):
        preflight.fn(context, ref, config)
    assert [ref.stage for ref in stage_runs(context.store)] == ["squeeze"]


def test_a_teacher_of_other_order_and_more_classes_is_brought_into_the_data_s(
    context: StageContext, tmp_path: Path
) -> None:
    classes = ("ten", *DIGITS[:8], "9", "8")
    state = write_weights(tmp_path / "teacher.safetensors", classes=classes)
    config = from_file(tmp_path / "teacher.safetensors", minimum_margin=0)
    record = fetch(context, ref_of(squeeze.fn(context, config)), NetworkRecord)
    assert record.spec.class_names == DIGITS
    rows = [classes.index(name) for name in DIGITS]
    assert all(torch.equal(record.state[f"head.{part}"], state[f"head.{part}"][rows]) for part in ("weight", "bias"))


def test_another_runs_teacher(context: StageContext, tmp_path: Path) -> None:
    write_weights(tmp_path / "teacher.safetensors")
    origin = ref_of(squeeze.fn(context, from_file(tmp_path / "teacher.safetensors")))
    config = TeacherConfig(source="mlflow", arch=ARCH, weights=origin.run_id)
    taken = squeeze.fn(context, config)
    assert taken.name == "Completed"
    assert ref_of(taken).digest == origin.digest and ref_of(taken).key != origin.key
    assert squeeze.fn(context, config).name == "Reused"
    other = squeeze.fn(context, config.model_copy(update={"mean": (0.25,)}))
    assert other.name == "Completed" and context.store.fetch(ref_of(other)).spec.mean == (0.25,)


def test_another_runs_output_must_be_a_network(context: StageContext) -> None:
    ref = context.store.commit("a" * 64, "measure", Accuracy(torch.tensor([5]), torch.tensor([10])))
    config = TeacherConfig(source="mlflow", arch=ARCH, weights=ref.run_id)
    with pytest.raises(ModelError, match=rf"teacher\.weights: MLflow run {ref.run_id} holds no network"):
        squeeze.fn(context, config)


def test_an_unknown_run_is_the_users_mistake(context: StageContext) -> None:
    with pytest.raises(ModelError, match=r"teacher\.weights"):
        squeeze.fn(context, TeacherConfig(source="mlflow", arch=ARCH, weights="0" * 32))


def test_another_runs_teacher_must_be_of_the_stated_architecture(context: StageContext, tmp_path: Path) -> None:
    write_weights(tmp_path / "teacher.safetensors")
    origin = ref_of(squeeze.fn(context, from_file(tmp_path / "teacher.safetensors")))
    with pytest.raises(ModelError, match=r"teacher\.arch"):
        squeeze.fn(context, TeacherConfig(source="mlflow", arch="resnet18", weights=origin.run_id))


def test_training_leaves_every_image_decoded_in_the_home(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However slow the machine is: an artifact would start a Prefect server.
    monkeypatch.setattr("tasks.progress.UI_SECONDS", float("inf"))
    for split in ("train", "test"):
        for label in "ab":
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (8, 8), (60 * number, 200 if label == "a" else 20, 0)).save(folder / f"{number}.png")
    for cache in (False, True):
        config = DataConfig(source="image_folder", root=str(tmp_path / "data"), image_size=8, cache=cache)
        train, test = open_split(config, "train"), open_split(config, "test")
        context = StageContext(store, DataRef(config, train.digest, test.digest, 2), ComputeConfig(), int(cache), "run")
        training = TrainingConfig(epochs=1, batch_size=2)
        ref_of(squeeze.fn(context, TeacherConfig(arch="convnet1-w4", training=training)))
        assert store.decoded_folder.exists() == cache
    (index,) = store.decoded_folder.glob("*/index.bin")
    assert all(any(index.read_bytes()[16 * i : 16 * i + 16]) for i in range(6))


@pytest.mark.parametrize(("threads", "used"), [(0, 2), (3, 3)])
def test_training_has_the_teacher_s_threads(
    threads: int, used: int, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.progress.UI_SECONDS", float("inf"))
    seen: list[int] = []

    def training(*arguments: Any, **options: Any) -> NetworkRecord:
        seen.append(torch.get_num_threads())
        return train_teacher(*arguments, **options)

    monkeypatch.setattr("tasks.trainings.train_teacher", training)
    context = replace(context, compute=ComputeConfig(threads=2))
    config = TeacherConfig(arch=ARCH, training=TrainingConfig(epochs=1, batch_size=25), threads=threads)
    ref_of(squeeze.fn(context, config))
    assert seen == [used]
