from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cudd_core.canonical import canonical_json
from cudd_core.codec import content_digest, read_record, write_record
from cudd_core.errors import ArtifactDamaged
from cudd_core.image_table import IMAGE_FILE
from cudd_core.manifest import MANIFEST_FILE, read_manifest, verify_folder
from cudd_core.records import (
    Accuracies,
    Accuracy,
    Coverage,
    Features,
    LayerStatistics,
    NetworkRecord,
    NetworkSpec,
    PackedLabels,
    Pictures,
    Record,
    Selection,
    Shard,
    SoftLabels,
    SyntheticSet,
    Trajectory,
    Verdicts,
)

RNG = torch.Generator().manual_seed(0)
HISTORY = ({"epoch": 1, "loss": 0.1 + 0.2, "accuracy": 0.5}, {"epoch": 2, "loss": math.inf})
SPEC = NetworkSpec("convnet3", 3, 3, 8, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5), ("zéro", "one", "two"))


def images(n: int, channels: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, channels, 9, 9), generator=RNG, dtype=torch.uint8)


RECORDS: dict[str, Record] = {
    "network": NetworkRecord(
        SPEC,
        {
            "weight": torch.randn(4, 3, 3, 3, generator=RNG).to(memory_format=torch.channels_last),
            "half": torch.randn(5, generator=RNG).bfloat16(),
            "bn.num_batches_tracked": torch.tensor(7),
            "empty": torch.zeros(0, 3),
        },
        HISTORY,
    ),
    "trajectory": Trajectory(SPEC, {"a.weight": torch.randn(4, 2, 3), "a.bias": torch.zeros(4, 2)}, HISTORY),
    "untrained": NetworkRecord(SPEC, {}, ({},)),
    "accuracy": Accuracy(torch.tensor([97, 0, 5]), torch.tensor([100, 0, 7])),
    "accuracies": Accuracies(torch.rand(3, generator=RNG, dtype=torch.float64), 355),
    "coverage": Coverage(
        {"originals": torch.randn(9, 2, generator=RNG), "distilled": torch.randn(2, 2, generator=RNG)},
        torch.rand(2, 3, generator=RNG, dtype=torch.float64),
    ),
    "verdicts": Verdicts(torch.arange(5), torch.tensor([0, 1, 2, 1, 0], dtype=torch.int32)),
    "statistics": LayerStatistics.of([(torch.randn(c, generator=RNG), torch.ones(c)) for c in (4, 8)], 17),
    "selection": Selection(torch.tensor([3, 4]), 5, torch.arange(4).reshape(2, 2), torch.zeros(2, 2).long()),
    "shard": Shard(images(6, 3), torch.arange(6) % 3, torch.arange(6) // 3, torch.arange(6) - 1, 2, HISTORY),
    "grey": Shard(images(2, 1), torch.arange(2), torch.zeros(2).long(), torch.arange(2), 1),
    "nothing": Shard(images(0, 3), *(torch.zeros(0, dtype=torch.int64) for _ in range(3)), curriculum=1),
    "set": SyntheticSet(
        images(300, 3), torch.arange(300) % 3, torch.arange(300) // 3, -torch.ones(300).long(),
        torch.ones(300).long(), ("zéro", "one", "two"),
    ),
    "labels": SoftLabels(torch.randn(2, 6, 3, generator=RNG).half(), 100),
    "packed": PackedLabels(
        {
            "codes": torch.randint(0, 256, (2, 6, 3), generator=RNG, dtype=torch.uint8),
            "range": torch.randn(2, 2, 2, generator=RNG).half(),
            "classes": torch.randint(0, 300, (2, 6, 2), generator=RNG, dtype=torch.int16),
        },
        300,
        100,
    ),
    "features": Features(torch.arange(5), torch.linspace(-1, 1, 10).reshape(5, 2)),
    "pictures": Pictures.of({"accuracy": b"\x89PNG 1", "Curriculum 1: grid": b"\x89PNG 2"}),
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    record = RECORDS[name]
    manifest = write_record(record, tmp_path)
    again = read_record(tmp_path)

    assert type(again) is type(record)
    for field in dataclasses.fields(record):
        want, have = getattr(record, field.name), getattr(again, field.name)
        if isinstance(want, torch.Tensor):
            want, have = {"": want}, {"": have}
        if isinstance(want, dict):
            assert list(want) == list(have)
            for key in want:
                assert want[key].dtype == have[key].dtype and torch.equal(want[key], have[key])
        else:
            assert want == have
    assert manifest == read_manifest(tmp_path)
    assert manifest.digest == content_digest(record) == content_digest(again)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.parametrize("name", RECORDS)
def test_bytes_repeat(name: str, tmp_path: Path) -> None:
    assert write_record(RECORDS[name], tmp_path / "a") == write_record(RECORDS[name], tmp_path / "b")


@pytest.mark.parametrize("name", ["network", "accuracy", "shard", "set", "labels", "packed"])
def test_damage_to_any_file_is_found(name: str, tmp_path: Path) -> None:
    (tmp_path / "preview.png").write_bytes(b"preview")
    manifest = write_record(RECORDS[name], tmp_path)
    names = [file.path for file in manifest.files]
    assert "preview.png" in names

    for path in [tmp_path / name for name in [*names, MANIFEST_FILE]]:
        good = path.read_bytes()
        for position in {0, len(good) // 2, len(good) - 1}:
            path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
            # A flip in the manifest may turn up as another file's missing match.
            with pytest.raises(ArtifactDamaged, match="." if path.name == MANIFEST_FILE else path.name):
                read_record(tmp_path)
        path.write_bytes(good[:-1])
        with pytest.raises(ArtifactDamaged, match=path.name):
            read_record(tmp_path)
        path.unlink()
        with pytest.raises(ArtifactDamaged, match=f"{path.name}: missing"):
            read_record(tmp_path)
        path.write_bytes(good)
    read_record(tmp_path)


def test_any_bit_of_the_manifest_counts(tmp_path: Path) -> None:
    write_record(RECORDS["accuracy"], tmp_path)
    path = tmp_path / MANIFEST_FILE
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(ArtifactDamaged):
            read_record(tmp_path)


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/hostname", "a/../../outside", "a\\b", "c:x", ".", "", "a//b", "./a"]
)
def test_paths_outside_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "record"
    (tmp_path / "outside").write_bytes(b"")
    manifest = write_record(RECORDS["accuracy"], folder)
    files = (*manifest.files, dataclasses.replace(manifest.files[0], path=name))
    forged = dataclasses.replace(manifest, files=tuple(sorted(files, key=lambda file: file.path)))
    (folder / MANIFEST_FILE).write_bytes(forged.to_json())
    with pytest.raises(ArtifactDamaged, match="not inside the folder"):
        read_record(folder)


@pytest.mark.parametrize("target", ["record.json", "data"])
def test_links_are_refused(target: str, tmp_path: Path) -> None:
    folder = tmp_path / "record"
    write_record(RECORDS["grey"], folder)
    os.rename(folder / target, tmp_path / "moved")
    (folder / target).symlink_to(tmp_path / "moved")
    with pytest.raises(ArtifactDamaged, match="link" if target != "record.json" else "not a regular file"):
        verify_folder(folder)
    with pytest.raises(ValueError, match="link"):
        write_record(RECORDS["labels"], folder)


@pytest.mark.parametrize(("change", "what"), [({"kind": "Pickle"}, "unknown kind"), ({"codec": 99}, "version 99")])
def test_unknown_kinds_and_versions_are_refused(change: dict[str, object], what: str, tmp_path: Path) -> None:
    write_record(RECORDS["accuracy"], tmp_path)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactDamaged, match=what):
        read_record(tmp_path, verified=True)


@pytest.mark.parametrize("fields", [{"n": "1"}, {"n": 1.5}, {}, {"n": 1, "x": 1}])
def test_plain_fields_are_typed(fields: dict[str, object], tmp_path: Path) -> None:
    write_record(RECORDS["accuracies"], tmp_path)
    path = tmp_path / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fields": fields}))
    with pytest.raises(ArtifactDamaged, match=r"record\.json"):
        read_record(tmp_path, verified=True)


def test_records_that_break_their_contract_are_not_written(tmp_path: Path) -> None:
    shard = RECORDS["shard"]
    assert isinstance(shard, Shard)
    with pytest.raises(ValueError, match="uint8"):
        write_record(dataclasses.replace(shard, images=shard.images.float()), tmp_path)
    with pytest.raises(ValueError, match="label must be int64"):
        write_record(dataclasses.replace(shard, labels=shard.labels.int()), tmp_path)
    with pytest.raises(ValueError, match="float16"):
        write_record(SoftLabels(torch.zeros(1, 1, 1), 0), tmp_path)


def test_names_that_would_be_mixed_up_are_not_written(tmp_path: Path) -> None:
    record = Coverage({"scores": torch.zeros(2, 2)}, torch.zeros(1, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="points has names that are fields of the record: scores"):
        write_record(record, tmp_path)


def test_tied_and_sliced_tensors(tmp_path: Path) -> None:
    base = torch.randn(4, 4, generator=RNG)
    write_record(NetworkRecord(SPEC, {"a": base, "b": base, "c": base[1:3], "d": base.T}), tmp_path)
    record = read_record(tmp_path)
    assert isinstance(record, NetworkRecord)
    assert torch.equal(record.state["b"], base) and torch.equal(record.state["c"], base[1:3])
    assert torch.equal(record.state["d"], base.T)


@pytest.mark.parametrize("name", RECORDS)
def test_a_team_reads_what_the_umask_lets_it_read(name: str, tmp_path: Path) -> None:
    """safetensors makes private files; a folder that several people share could then be read by their owners alone."""
    before = os.umask(0o027)
    try:
        write_record(RECORDS[name], tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o640}


def test_hugging_face_layout(tmp_path: Path) -> None:
    write_record(RECORDS["set"], tmp_path)
    table = pq.read_table(tmp_path / IMAGE_FILE)
    assert table.column_names == ["image", "label", "slice", "source", "curriculum"]
    assert table.column("image")[0].as_py()["bytes"].startswith(b"\x89PNG")
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["label"] == {"names": ["zéro", "one", "two"], "_type": "ClassLabel"}


def test_digest_depends_on_everything_that_a_record_says() -> None:
    shard, network = RECORDS["shard"], RECORDS["network"]
    assert isinstance(shard, Shard) and isinstance(network, NetworkRecord)
    variants: list[Record] = [
        *RECORDS.values(),
        dataclasses.replace(shard, curriculum=3),
        dataclasses.replace(shard, labels=shard.labels + 1),
        dataclasses.replace(shard, images=shard.images.reshape(6, 9, 3, 9)),
        dataclasses.replace(shard, sources=shard.slices, slices=shard.sources),
        dataclasses.replace(network, state=network.state | {"empty": torch.zeros(3, 0)}),
        dataclasses.replace(network, state=network.state | {"empty": torch.zeros(0, 3).double()}),
        dataclasses.replace(network, spec=dataclasses.replace(SPEC, std=(0.5, 0.5, 0.25))),
    ]
    assert len({content_digest(record) for record in variants}) == len(variants)
    turned = dict(reversed(network.state.items()))
    assert content_digest(dataclasses.replace(network, state=turned)) == content_digest(network)


def test_digest_is_stable_between_versions() -> None:
    """Changing it makes every stored artifact unreadable by its reference: raise CODEC_VERSION and say so."""
    record = Verdicts(torch.tensor([1, 2]), torch.tensor([0, -1], dtype=torch.int32))
    assert content_digest(record) == "511049ca93fd8281f6c27bf25b8d6c4583c069713e420784330c3696167db9d2"


numbers = st.integers(-(2**70), 2**70) | st.floats()
plain = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@settings(max_examples=50, deadline=None)
@given(plain)
def test_canonical_json_is_canonical(value: object) -> None:
    text = canonical_json(value)
    assert text.isascii()
    assert canonical_json(json.loads(text)) == text


@settings(max_examples=50, deadline=None)
@given(numbers, numbers)
def test_equal_numbers_have_equal_texts(a: float, b: float) -> None:
    same = a == b or (a != a and b != b)
    assert (canonical_json(a) == canonical_json(b)) == same


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), plain))
def test_key_order_does_not_matter(value: dict[str, object]) -> None:
    assert canonical_json(value) == canonical_json(dict(reversed(value.items())))


def test_canonical_json_refuses_what_it_cannot_say() -> None:
    for value in ({1}, b"", object(), {1: 2}, Path("x"), torch.zeros(1), torch.zeros(1).numpy()[0]):
        with pytest.raises(TypeError):
            canonical_json(value)
    assert canonical_json([True, 1, "1", None]) == '[true,1,"1",null]'


def test_a_history_is_a_log_and_no_part_of_the_content() -> None:
    rows = ({"epoch": 1.0, "loss": 0.5},)
    network = NetworkRecord(SPEC, {"w": torch.zeros(2)}, rows)
    assert content_digest(network) == content_digest(dataclasses.replace(network, history=()))
