"""Hugging Face Parquet."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cudd_core.data import filesystem, open_split
from cudd_core.data.filesystem import open_filesystem
from cudd_core.data.hf_parquet import open_hf_parquet
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

NAMES = ["ant", "bee", "cat"]


def _config(root: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"source": "hf_parquet", "root": str(root), "image_size": 12, **changes})


def test_images_labels_and_names_across_shards_and_row_groups(tmp_path: Path, files) -> None:
    labels = [i % 3 for i in range(14)]
    images = [files.png(files.noise(i, 3)) for i in range(14)]
    for shard, part in enumerate((slice(0, 8), slice(8, 14))):
        path = tmp_path / "data" / f"train-{shard:05}-of-00002.parquet"
        files.write_parquet(path, images[part], labels[part], NAMES)
    opened = open_split(_config(tmp_path), "train")
    assert opened.labels.tolist() == labels
    assert opened.class_names == tuple(NAMES)
    order = torch.tensor([13, 7, 8, 0, 2, 3])
    expected = torch.stack([torch.from_numpy(files.noise(int(i), 3)).permute(2, 0, 1) for i in order])
    assert torch.equal(opened.images(order), expected)


def test_one_changed_pixel_changes_the_digest(tmp_path: Path, files, three_classes) -> None:
    images, labels = three_classes(2, 3)
    digests = set()
    for change in (0, 1):
        pixels = files.noise(5, 3)
        pixels[3, 3, 1] ^= change
        path = tmp_path / str(change) / "train-0.parquet"
        files.write_parquet(path, [*images[:5], files.png(pixels)], labels, NAMES)
        digests.add(open_split(_config(path.parent), "train").digest)
    assert len(digests) == 2


@pytest.mark.parametrize("folder", ["", "data", "plain_text"])
def test_a_replaced_file_is_noticed(tmp_path: Path, files, three_classes, folder: str) -> None:
    path = tmp_path / folder / "train-0.parquet"
    files.write_parquet(path, *three_classes(2, 3), NAMES)
    first = open_split(_config(tmp_path), "train")
    files.write_parquet(path, *three_classes(3, 3), NAMES)
    second = open_split(_config(tmp_path), "train")
    assert (len(first), len(second)) == (6, 9)
    assert first.digest != second.digest


def test_large_sets_are_digested_by_footer(tmp_path: Path, files, three_classes, monkeypatch) -> None:
    monkeypatch.setattr("cudd_core.data.hf_parquet.CONTENT_LIMIT", 0)
    digests = []
    for number, per_class in enumerate((2, 2, 3)):
        path = tmp_path / str(number) / "train-0.parquet"
        files.write_parquet(path, *three_classes(per_class, 3), NAMES)
        digests.append(open_split(_config(path.parent), "train").digest)
    assert digests[0] == digests[1] != digests[2]


def test_without_names_classes_are_called_by_their_numbers(tmp_path: Path, files, three_classes) -> None:
    images, labels = three_classes(2, 3)
    files.write_parquet(tmp_path / "train-0.parquet", images, labels)
    files.write_parquet(tmp_path / "test-0.parquet", images[1:3], [0, 1])
    # The training split says which classes there are; a test split need not have them all.
    assert open_split(_config(tmp_path), "train").class_names == ("0", "1", "2")
    assert open_split(_config(tmp_path), "test").class_names == ("0", "1", "2")
    (tmp_path / "train-0.parquet").unlink()
    files.write_parquet(tmp_path / "test-0.parquet", images[1:3], [0, 2])
    with pytest.raises(DataError, match=r"no image of 1 of 3 classes: 1 \(1\)"):
        open_split(_config(tmp_path), "test")


def test_files_are_open_only_while_they_are_read(tmp_path: Path, files, three_classes) -> None:
    """A split may have more of them than a process may open."""
    images, labels = three_classes(4, 3)
    for number in range(4):
        files.write_parquet(tmp_path / f"train-{number}-of-4.parquet", images[number::4], labels[number::4], NAMES)
    split = open_split(_config(tmp_path), "train")
    split.images(torch.arange(len(split)))
    held = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _there(name)]
    assert not [path for path in held if path.startswith(str(tmp_path))]


def _there(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 2], None, r"no image of 1 of 3 classes: 1 \(1\)"),
        ([1, 2], None, r"no image of 1 of 3 classes: 0"),
        ([0, 2], NAMES, r"1 \(bee\)"),
        ([0, 3], NAMES, "label 3, but names only 3"),
        ([-1, 0], NAMES, "label -1"),
        ([0, None], NAMES, "1 rows have no value"),
        ([50_000_000_000, 7], None, r"'label' has the value 50000000000 among 2 rows.*data\.label_column"),
        ([], NAMES, "holds no images"),
    ],
)
def test_labels_that_do_not_fit(tmp_path: Path, files, labels, names, message: str) -> None:
    images = [files.png(files.noise(i, 3)) for i in range(len(labels))]
    files.write_parquet(tmp_path / "train-0.parquet", images, labels, names)
    with pytest.raises(DataError, match=message):
        open_split(_config(tmp_path), "train")


def test_ambiguous_and_wrong_columns(tmp_path: Path, files, three_classes) -> None:
    images, labels = three_classes(2, 3)
    files.write_parquet(tmp_path / "train-0.parquet", images, labels, extra={"coarse": [0, 1] * 3})
    with pytest.raises(DataError, match=r"data\.label_column to one of: label, coarse"):
        open_split(_config(tmp_path), "train")
    assert open_split(_config(tmp_path, label_column="coarse"), "train").labels.tolist() == [0, 1] * 3
    with pytest.raises(DataError, match=r"'fine'.*img, label, coarse"):
        open_split(_config(tmp_path, label_column="fine"), "train")
    with pytest.raises(DataError, match=r"'label' \(data\.image_column\) is int64"):
        open_split(_config(tmp_path, image_column="label", label_column="label"), "train")


def test_metadata_settles_which_integer_is_the_label(tmp_path: Path, files, three_classes) -> None:
    images, labels = three_classes(2, 3)
    files.write_parquet(tmp_path / "train-0.parquet", images, labels, NAMES, extra={"id": list(range(6))})
    assert open_split(_config(tmp_path), "train").labels.tolist() == labels


@pytest.mark.parametrize("names", ["5", '{"a": 1}', "[" * 100_000])
def test_metadata_that_is_none_is_passed_over(tmp_path: Path, files, three_classes, names: str) -> None:
    file = tmp_path / "train-0.parquet"
    files.write_parquet(file, *three_classes(2, 3))
    told = f'{{"info": {{"features": {{"label": {{"_type": "ClassLabel", "names": {names}}}}}}}}}'
    pq.write_table(pq.read_table(file).replace_schema_metadata({"huggingface": told}), file)
    assert open_split(_config(tmp_path), "train").class_names == ("0", "1", "2")


def test_damaged_images_are_named_by_file_and_row(tmp_path: Path, files, three_classes) -> None:
    images, labels = three_classes(3, 3)
    images[7] = images[7][:-150]
    files.write_parquet(tmp_path / "train-0.parquet", images, labels, NAMES)
    with pytest.raises(DataError, match=r"train-0\.parquet, row 7.*truncated"):
        open_split(_config(tmp_path), "train").images(torch.arange(9))


def test_images_by_path_only_are_refused(tmp_path: Path, files, three_classes) -> None:
    images, labels = three_classes(3, 3)
    files.write_parquet(tmp_path / "train-0.parquet", [*images[:8], None], labels, NAMES)
    with pytest.raises(DataError, match=r"row 8 holds no image bytes"):
        open_split(_config(tmp_path), "train").images(torch.arange(9))


def test_greyscale_and_colour(tmp_path: Path, files, three_classes) -> None:
    for channels, asked, message in (
        (1, 3, r"row 0 is greyscale.*data\.channels=1"),
        (3, 1, r"row 0.*data\.channels=3"),
    ):
        folder = tmp_path / str(channels)
        files.write_parquet(folder / "train-0.parquet", *three_classes(2, channels), NAMES)
        with pytest.raises(DataError, match=message):
            open_split(_config(folder, channels=asked), "train")
        assert open_split(_config(folder, channels=channels), "train").channels == channels


def test_missing_places(tmp_path: Path, files, three_classes) -> None:
    files.write_parquet(tmp_path / "train-0.parquet", *three_classes(2, 3), NAMES)
    with pytest.raises(DataError, match=r"no split 'test'.*Splits there: train"):
        open_split(_config(tmp_path), "test")
    with pytest.raises(DataError, match="does not exist"):
        open_split(_config(tmp_path / "nowhere"), "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no Parquet files"):
        open_split(_config(tmp_path / "empty"), "train")


def test_files_in_the_folder_of_a_configuration(tmp_path: Path, files, three_classes) -> None:
    (tmp_path / ".cache").mkdir()
    for folder in ("plain_text", ".cache"):
        files.write_parquet(tmp_path / folder / "train-0.parquet", *three_classes(2, 3), NAMES)
    below = open_split(_config(tmp_path), "train")
    assert below.digest == open_split(_config(tmp_path / "plain_text"), "train").digest
    files.write_parquet(tmp_path / "other" / "train-0.parquet", *three_classes(2, 3), NAMES)
    with pytest.raises(DataError, match=r"several folders: other, plain_text\. Set data\.root"):
        open_split(_config(tmp_path), "train")
    files.write_parquet(tmp_path / "data" / "train-0.parquet", *three_classes(3, 3), NAMES)
    assert len(open_split(_config(tmp_path), "train")) == 9


def test_a_missing_shard_is_refused(tmp_path: Path, files, three_classes) -> None:
    files.write_parquet(tmp_path / "train-00001-of-00002.parquet", *three_classes(2, 3), NAMES)
    with pytest.raises(DataError, match="1 shards of split 'train' where the file names say 2"):
        open_split(_config(tmp_path), "train")


HASH = "-b42a775f407cee45"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"train-00000-of-00003{HASH}"], "1 shards of split 'train' where the file names say 3"),
        (["train-00000-of-00001", f"train-00000-of-00001{HASH}"], "2 shards of split 'train' where .* say 1"),
        (["train-00000-of-00001", "train"], r"shards of split 'train' and train\.parquet beside them"),
        (["train-00000-of-00001", "train-00000-of-00001 (1)"], r"and train-00000-of-00001 \(1\)\.parquet beside"),
        ([f"train-clean-00000-of-00001{HASH}", "train-other-00000-of-00001"], "Splits there: train-clean, train-other"),
    ],
)
def test_shards_that_are_none_of_one_split_are_refused(tmp_path: Path, files, three_classes, names, message) -> None:
    for name in names:
        files.write_parquet(tmp_path / f"{name}.parquet", *three_classes(2, 3), NAMES)
    with pytest.raises(DataError, match=message):
        open_split(_config(tmp_path), "train")


def test_shards_with_a_hash_in_their_names(tmp_path: Path, files, three_classes) -> None:
    for number in range(2):
        files.write_parquet(tmp_path / f"train-0000{number}-of-00002{HASH}.parquet", *three_classes(2, 3), NAMES)
    assert len(open_split(_config(tmp_path), "train")) == 12


def test_labels_that_no_class_has(tmp_path: Path, files, three_classes) -> None:
    images, _ = three_classes(1, 3)
    table = pa.table({"img": pa.array(images, pa.binary()), "label": pa.array([0, 1, 2**63], pa.uint64())})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: column 'label' has a value beyond.*data\.label_column"):
        open_split(_config(tmp_path), "train")


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, {}),
        ({"AWS_REGION": "eu-west-1"}, {"region": "eu-west-1"}),
        ({"AWS_DEFAULT_REGION": "eu-west-3"}, {"region": "eu-west-3"}),
        (
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9000/"},
            {"endpoint_override": "127.0.0.1:9000", "scheme": "http", "region": "us-east-1"},
        ),
        (
            {"MLFLOW_S3_ENDPOINT_URL": "s3.example", "AWS_REGION": "eu-west-1"},
            {"endpoint_override": "s3.example", "scheme": "https", "region": "eu-west-1"},
        ),
        (
            {"AWS_ENDPOINT_URL_S3": "https://one", "AWS_ENDPOINT_URL": "https://two"},
            {"endpoint_override": "one", "scheme": "https", "region": "us-east-1"},
        ),
    ],
)
def test_where_s3_is(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], options: dict[str, str]) -> None:
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made: list[dict[str, str]] = []
    monkeypatch.setattr("pyarrow.fs.S3FileSystem", lambda **given: made.append(given))
    filesystem._s3()
    assert made == [options]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train-0.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"train-0\.parquet cannot be read"):
        open_split(_config(tmp_path), "train")


def test_row_groups_beyond_the_cache_are_read_again(tmp_path: Path, files, three_classes, monkeypatch) -> None:
    monkeypatch.setattr("cudd_core.data.parquet_split.ENCODED_CACHE", 0)
    monkeypatch.setattr("cudd_core.data.encoded.MEMORY_LIMIT", 0)
    files.write_parquet(tmp_path / "train-0.parquet", *three_classes(5, 3), NAMES)
    opened = open_hf_parquet(_config(tmp_path), "train")
    first = opened.images(torch.arange(15))
    assert torch.equal(opened.images(torch.arange(14, -1, -1)), first.flip(0))
    assert len(opened._held) == 2


def test_s3_addresses(monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    filesystem, path = open_filesystem("s3://bucket/some/prefix/")
    assert filesystem.type_name == "s3"
    assert path == "bucket/some/prefix"
    with pytest.raises(DataError, match="no bucket"):
        open_filesystem("s3://")
