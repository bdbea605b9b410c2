"""Parquet on a real S3 server, beside the same files in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.servers import BUCKET, S3, Missing, s3_server
from cudd_core.data import decode_ahead, forget_splits, open_split
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    try:
        with s3_server(tmp_path_factory.mktemp("s3") / "data") as running:
            yield running
    except Missing as error:
        pytest.skip(str(error))


@pytest.fixture
def s3(server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


def test_it_is_the_same_data_as_in_a_folder(s3: S3, tmp_path: Path, files, three_classes) -> None:
    for split in ("train", "test"):
        for shard in range(2):
            name = f"data/{split}-{shard:05}-of-00002.parquet"
            files.write_parquet(tmp_path / "set" / name, *three_classes(3, 3), NAMES)
            s3.client().upload_file(str(tmp_path / "set" / name), BUCKET, f"set/{name}")
    remote = DataConfig(source="hf_parquet", root=f"{s3.uri}/set", image_size=8)
    local = remote.model_copy(update={"root": str(tmp_path / "set")})
    for limit in (0, 2):
        ours, theirs = (open_split(c.model_copy(update={"limit_per_class": limit}), "train") for c in (remote, local))
        everything = torch.arange(len(ours))
        assert ours.digest == theirs.digest and torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images(everything), theirs.images(everything))
    forget_splits()
    cached = open_split(remote, "train", tmp_path / "decoded")
    decode_ahead(cached)
    assert torch.equal(cached.images(torch.arange(18)), open_split(local, "train").images(torch.arange(18)))


def test_what_is_wrong_is_told(s3: S3) -> None:
    with pytest.raises(DataError, match=r"nowhere has no Parquet files"):
        open_split(DataConfig(source="hf_parquet", root=f"{s3.uri}/nowhere"), "train")
    with pytest.raises(DataError, match=r"s3://no-such-bucket/x"):
        open_split(DataConfig(source="hf_parquet", root="s3://no-such-bucket/x"), "train")
