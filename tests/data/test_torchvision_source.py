"""torchvision's data sets; nothing is downloaded."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError


def _config(root: object = "unused", **changes: object) -> DataConfig:
    return DataConfig(**{"source": "torchvision", "root": str(root), "name": "CIFAR10", **changes})


@pytest.fixture
def cifar(tmp_path: Path, files, monkeypatch) -> Path:
    """A miniature CIFAR-10 in its own files."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]:
        data = np.stack([files.noise(i, 3, (32, 32)).transpose(2, 0, 1).reshape(-1) for i in range(10)])
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": list(range(10))}))
    (folder / CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    return tmp_path


def test_cifar_is_read(cifar: Path, files) -> None:
    train, test = open_split(_config(cifar), "train"), open_split(_config(cifar), "test")
    assert (len(train), len(test)) == (50, 10)
    assert test.class_names == tuple(f"class {i}" for i in range(10))
    assert torch.equal(
        test.images(torch.tensor([4]))[0], torch.from_numpy(files.noise(4, 3, (32, 32))).permute(2, 0, 1)
    )


def test_channels_must_agree(cifar: Path) -> None:
    with pytest.raises(DataError, match=r"CIFAR10.*data\.channels=3"):
        open_split(_config(cifar, channels=1), "train")


@pytest.mark.parametrize("split", ["val", ""])
def test_unknown_split(cifar: Path, split: str) -> None:
    with pytest.raises(DataError, match="Splits: train, test"):
        open_split(_config(cifar), split)


def test_split_of_a_set_that_names_its_splits() -> None:
    with pytest.raises(DataError, match="SVHN has no split 'validation'"):
        open_split(_config(name="SVHN"), "validation")


@pytest.mark.parametrize("name", ["CIFAR11", "", "VisionDataset", "ImageFolder", "FakeData", "Kinetics", "os"])
def test_names_that_cannot_be_used(name: str) -> None:
    with pytest.raises(DataError, match=r"torchvision has no data set|needs more than a root and a split"):
        open_split(_config(name=name), "train")


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR10

    def unreachable(self: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(CIFAR10, "download", unreachable)
    with pytest.raises(DataError, match=r"downloading it failed \(no route to host\)\. Put its files into"):
        open_split(_config(tmp_path), "train")


def test_too_large_a_set_is_refused(cifar: Path, monkeypatch) -> None:
    monkeypatch.setattr("cudd_core.data.torchvision_source.MEMORY_LIMIT", 1000)
    with pytest.raises(DataError, match="too many to keep in memory"):
        open_split(_config(cifar), "train")
