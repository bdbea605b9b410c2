"""The archive's own layout: training folders, and a file that labels the validation images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

WNIDS = ["n02", "n10", "n01"]
"""In the order of the file, which is not that of the labels."""


@pytest.fixture
def root(tmp_path: Path, files) -> Path:
    files.write_folder(tmp_path, "flat", WNIDS, per_class=3)
    for name in WNIDS:
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "flat" / name).rename(tmp_path / "train" / name / "images")
        (tmp_path / "train" / name / f"{name}_boxes.txt").write_text("0.png\t0\t0\t7\t7\n")
    files.write_folder(tmp_path, "other", ["images"], per_class=6)
    (tmp_path / "other").rename(tmp_path / "val")
    lines = [f"{number}.png\t{WNIDS[number % 3]}\t0\t0\t7\t7" for number in range(6)]
    (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    return tmp_path


def config(root: Path) -> DataConfig:
    return DataConfig(source="tiny_imagenet", root=str(root), image_size=12, test_split="val")


def test_classes_are_sorted_and_shared_by_the_splits(root: Path) -> None:
    train, val = (open_split(config(root), split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ("n01", "n02", "n10")
    assert train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert train.digest != val.digest


def test_validation_images_go_with_their_lines(root: Path) -> None:
    """Image number i is of class WNIDS[i % 3]: the folder of images, opened as one class, has the same pixels."""
    val = open_split(config(root), "val")
    plain = open_split(
        DataConfig(source="image_folder", root=str(root), image_size=12, train_split="val"), "val"
    ).images(torch.arange(6))
    order = [2, 5, 0, 3, 1, 4]
    assert torch.equal(val.images(torch.arange(6)), plain[order])


def test_images_that_come_and_go_are_noticed(root: Path) -> None:
    assert len(open_split(config(root), "train")) == 9
    folder = root / "train" / "n02" / "images"
    shutil.copy(folder / "0.png", folder / "new.png")
    (folder / "1.png").unlink()
    (root / "train" / "n10" / "images" / "1.png").unlink()
    assert open_split(config(root), "train").labels.bincount().tolist() == [3, 3, 2]


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize(
    ("spoil", "split", "message"),
    [
        (lambda root: (root / "wnids.txt").unlink(), "train", "image_folder"),
        (lambda root: cut(root / "wnids.txt"), "train", "differ in 1 classes: n01"),
        (lambda root: cut(root / "val" / "val_annotations.txt"), "val", r"does not name 1 images, among them 5\.png"),
        (lambda root: (root / "val" / "images" / "3.png").unlink(), "val", r"line 4.*3\.png"),
        (lambda root: (root / "val" / "val_annotations.txt").write_text("0.png\tn99\n"), "val", "line 1.*n99"),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), "val", "needs val_annotations"),
        (lambda root: (root / "train" / "n02" / "images").rename(root / "x"), "train", "n02.images is missing"),
        (
            lambda root: (root / "train" / "n02" / "images" / "1.png").write_text("text"),
            "train",
            r"1\.png is not an image",
        ),
        (lambda root: (root / "val" / "val_annotations.txt").write_bytes(b"caf\xe9\tn01\n"), "val", "UTF-8"),
        (lambda root: None, "test", "no labels"),
    ],
)
def test_what_is_wrong_is_named(root: Path, spoil: Callable[[Path], object], split: str, message: str) -> None:
    spoil(root)
    with pytest.raises(DataError, match=message):
        open_split(config(root), split)
