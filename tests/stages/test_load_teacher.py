"""A teacher from a safetensors file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cudd_core.codec import content_digest, write_record
from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.errors import ConfigError, ModelError
from cudd_core.measurement import measure
from cudd_core.records import Accuracy, NetworkRecord, Record
from cudd_core.stages.load_teacher import load_teacher, teacher_file_digest
from cudd_core.teacher import TeacherConfig

Write = Callable[..., TeacherConfig]


@pytest.fixture
def write(teacher: NetworkRecord, tmp_path: Path) -> Write:
    """Write the teacher's weights with its metadata, keywords replacing parts of either."""

    def write(state: dict[str, torch.Tensor] | None = None, **metadata: str) -> TeacherConfig:
        spec = teacher.spec
        about = {
            "class_names": json.dumps(spec.class_names),
            "mean": json.dumps(spec.mean),
            "std": json.dumps(spec.std),
        }
        path = tmp_path / "teacher.safetensors"
        save_file(state or teacher.state, path, {k: v for k, v in (about | metadata).items() if v})
        return TeacherConfig(source="file", arch=spec.arch, weights=str(path))

    return write


def test_weights_and_metadata_come_back(
    write: Write, teacher: NetworkRecord, split: ArraySplit, test_split: ArraySplit, runtime: Runtime
) -> None:
    loaded = load_teacher(write(), split)
    assert loaded.spec == teacher.spec
    assert loaded.state.keys() == teacher.state.keys()
    assert all(torch.equal(loaded.state[name], value) for name, value in teacher.state.items())
    assert measure(loaded, test_split, runtime).right.equal(measure(teacher, test_split, runtime).right)


def test_the_configuration_wins_over_the_file(write: Write, split: ArraySplit) -> None:
    ours = {"class_names": ("1", "2", "3", "4"), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    spec = load_teacher(write().model_copy(update=ours), split).spec
    assert (spec.class_names, spec.mean, spec.std) == tuple(ours.values())


@pytest.mark.parametrize("field", ["class_names", "mean", "std"])
def test_what_neither_tells_is_asked_for(field: str, write: Write, split: ArraySplit, teacher: NetworkRecord) -> None:
    config = write(**{field: ""})
    with pytest.raises(ConfigError, match=rf"teacher\.{field} is needed"):
        load_teacher(config, split)
    told = config.model_copy(update={field: getattr(teacher.spec, field)})
    assert load_teacher(told, split).spec == teacher.spec


def test_another_number_of_channels_is_named(write: Write, split: ArraySplit) -> None:
    with pytest.raises(ConfigError, match=r"have 1 and 1 values but the data has 3 channel"):
        load_teacher(write(mean="[0.5]", std="[0.5]"), split)


def test_weights_of_another_architecture_are_named(write: Write, split: ArraySplit) -> None:
    for arch in ("convnet2-w16", "convnet3-w8"):
        with pytest.raises(ModelError, match=rf"do not fit {arch} with 4 classes at 8 px"):
            load_teacher(write().model_copy(update={"arch": arch}), split)


def test_class_names_that_do_not_fit_the_head_are_refused(write: Write, split: ArraySplit) -> None:
    with pytest.raises(ModelError, match=r"with 3 classes.*head\.weight: file \(4, 32\), network \(3, 32\)"):
        load_teacher(write(class_names='["a", "b", "c"]'), split)


def test_pickles_are_never_read(teacher: NetworkRecord, split: ArraySplit, tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    torch.save(teacher.state, path)
    config = TeacherConfig(source="file", arch="convnet2-w8", weights=str(path))
    with pytest.raises(ModelError, match=r"teacher\.pt is not a \.safetensors file.*never read.*/convert_teacher\.py"):
        load_teacher(config, split)


def test_a_missing_file_is_named(split: ArraySplit, tmp_path: Path) -> None:
    config = TeacherConfig(source="file", arch="convnet2-w8", weights=str(tmp_path / "none.safetensors"))
    with pytest.raises(ModelError, match=r"no file .*none\.safetensors"):
        load_teacher(config, split)


def test_a_damaged_file_is_named(write: Write, split: ArraySplit) -> None:
    config = write()
    whole = Path(config.weights).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not safetensors at all"):
        Path(config.weights).write_bytes(damaged)
        with pytest.raises(ModelError, match=r"teacher\.safetensors cannot be read as safetensors"):
            load_teacher(config, split)


@pytest.mark.parametrize("text", ["[" * 100_000, f"[{'9' * 5000}]"])
def test_metadata_made_to_break_the_parser_is_named(write: Write, split: ArraySplit, text: str) -> None:
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        load_teacher(write(class_names=text), split)


def test_metadata_that_is_not_json_is_named(write: Write, split: ArraySplit) -> None:
    with pytest.raises(ModelError, match=r"teacher\.safetensors cannot be read"):
        load_teacher(write(mean="0.5, 0.5"), split)


def test_the_digest_is_that_of_the_bytes(write: Write, teacher: NetworkRecord) -> None:
    path = Path(write().weights)
    digest = teacher_file_digest(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    write({name: value + 1 for name, value in teacher.state.items()})
    assert teacher_file_digest(path) != digest


def stored(record: Record, folder: Path) -> TeacherConfig:
    write_record(record, folder)
    return TeacherConfig(source="file", arch="convnet1-w8", weights=str(folder))


def test_a_stored_network_is_a_teacher_bit_for_bit(teacher: NetworkRecord, split: ArraySplit, tmp_path: Path) -> None:
    config = stored(teacher, tmp_path / "network").model_copy(update={"arch": teacher.spec.arch})
    assert content_digest(load_teacher(config, split)) == content_digest(teacher)
    for field in ("mean", "std"):
        told = load_teacher(config.model_copy(update={field: (0.1, 0.2, 0.3)}), split).spec
        assert told == replace(teacher.spec, **{field: (0.1, 0.2, 0.3)})


def test_what_is_said_of_a_stored_network_s_classes_counts(
    teacher: NetworkRecord, split: ArraySplit, tmp_path: Path
) -> None:
    config = stored(teacher, tmp_path / "network").model_copy(update={"arch": teacher.spec.arch})
    renamed = replace(split, class_names=("w", "x", "y", "z"))
    assert load_teacher(config, renamed).spec.class_names == teacher.spec.class_names
    taken = load_teacher(config.model_copy(update={"class_order": "as_data"}), renamed)
    assert taken.spec.class_names == ("w", "x", "y", "z")
    told = load_teacher(config.model_copy(update={"class_names": ("o", "p", "q", "r")}), renamed)
    assert told.spec.class_names == ("o", "p", "q", "r")
    with pytest.raises(ModelError, match=r"knows 4 classes, but teacher\.class_names has 2"):
        load_teacher(config.model_copy(update={"class_names": ("p", "q")}), renamed)


def test_another_stored_network_has_another_digest(teacher: NetworkRecord, tmp_path: Path) -> None:
    other = replace(teacher, state={name: value + 1 for name, value in teacher.state.items()})
    digests = [
        teacher_file_digest(Path(stored(record, tmp_path / name).weights))
        for name, record in (("a", teacher), ("b", teacher), ("c", other))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_folder_that_is_no_teacher_is_refused(teacher: NetworkRecord, split: ArraySplit, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no stored network.*cudd fetch RUN squeeze"):
        teacher_file_digest(tmp_path / "empty")
    with pytest.raises(ModelError, match=f"holds a {teacher.spec.arch}. Set teacher.arch={teacher.spec.arch}"):
        load_teacher(stored(teacher, tmp_path / "network").model_copy(update={"arch": "resnet18"}), split)
    with pytest.raises(ModelError, match="holds a Accuracy, not a network"):
        load_teacher(stored(Accuracy(torch.tensor([5]), torch.tensor([10])), tmp_path / "accuracy"), split)
    weights = tmp_path / "network" / "tensors.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match=r"tensors\.safetensors.*Fetch or copy it again"):
        load_teacher(TeacherConfig(source="file", arch=teacher.spec.arch, weights=str(tmp_path / "network")), split)
