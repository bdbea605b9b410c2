"""ImageNet in its original layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cudd_core import data
from cudd_core.data import open_split
from cudd_core.data.imagenet import GROUND_TRUTH, META, SOLUTION
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

WNIDS = ["n01440764", "n01443537", "n02084071"]
NUMBERS = {"n01440764": 3, "n01443537": 1, "n02084071": 2}
"""The kit's own numbers, in another order than the ids."""
TRUTH = [2, 0, 1, 1, 2, 0]
"""Class of each validation image, in the order of their names."""


def _config(root: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"source": "imagenet", "root": str(root), "image_size": 12, "test_split": "val", **changes})


def _name(position: int) -> str:
    return f"ILSVRC2012_val_{position + 1:08}"


def write_meta(path: Path) -> None:
    """What torchvision and the challenge's own scripts read: a MATLAB structure of leaf and inner synsets."""
    from scipy.io import savemat

    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    rows = [(number, wnid, "words", "gloss", 0) for wnid, number in NUMBERS.items()]
    rows.append((4, "n00001740", "entity", "an inner node", 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"synsets": np.array(rows, dtype=fields)})


def write_kit(folder: Path) -> None:
    write_meta(folder / META)
    (folder / GROUND_TRUTH).write_text("".join(f"{NUMBERS[WNIDS[label]]}\n" for label in TRUTH))


def write_solution(root: Path) -> None:
    rows = [f"{_name(position)},{WNIDS[label]} 1 2 3 4 {WNIDS[label]} 5 6 7 8" for position, label in enumerate(TRUTH)]
    (root / SOLUTION).write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


@pytest.fixture
def root(tmp_path: Path, files) -> Path:
    """Training images by class; validation images flat, their classes told nowhere."""
    files.write_folder(tmp_path, "train", WNIDS, per_class=2)
    (tmp_path / "val").mkdir()
    for position in range(len(TRUTH)):
        (tmp_path / "val" / f"{_name(position)}.JPEG").write_bytes(files.png(files.noise(position, 3)))
    return tmp_path


@pytest.mark.parametrize("place", ["imagenet21k_train", "ILSVRC/Data/CLS-LOC/train"])
def test_images_and_classes_that_come_are_noticed(place: str, root: Path) -> None:
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / "train").rename(root / place)
    folder = root / place
    assert open_split(_config(root), "train").labels.tolist() == [0, 0, 1, 1, 2, 2]
    shutil.copy(next((folder / WNIDS[0]).iterdir()), folder / WNIDS[0] / "new.png")
    assert open_split(_config(root), "train").labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    shutil.copytree(folder / WNIDS[0], folder / "n09999999")
    assert len(open_split(_config(root), "train").class_names) == 4


def _sorted_into_folders(root: Path) -> Path:
    """The same data as `image_folder` reads it."""
    other = root / "sorted"
    shutil.copytree(root / "train", other / "train")
    for position, label in enumerate(TRUTH):
        folder = other / "val" / WNIDS[label]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "val" / f"{_name(position)}.JPEG", folder)
    return other


@pytest.mark.parametrize("told", ["kit beside", "kit unpacked", "kaggle", "kaggle tree"])
def test_flat_validation_images_are_those_of_class_folders(root: Path, told: str) -> None:
    other = _sorted_into_folders(root)
    if told.startswith("kit"):
        write_kit(root if told == "kit beside" else root / "ILSVRC2012_devkit_t12" / "data")
    else:
        write_solution(root)
    if told == "kaggle tree":
        (root / "ILSVRC/Data/CLS-LOC").mkdir(parents=True)
        for split in ("train", "val"):
            (root / split).rename(root / "ILSVRC/Data/CLS-LOC" / split)
    for split in ("train", "val"):
        ours = open_split(_config(root), split)
        theirs = open_split(_config(other, source="image_folder"), split)
        assert ours.class_names == theirs.class_names == tuple(WNIDS)
        assert ours.digest == theirs.digest
        assert torch.equal(ours.labels, theirs.labels)
        assert torch.equal(ours.images(torch.arange(6)), theirs.images(torch.arange(6)))


def test_flat_images_that_come_are_noticed_without_looking_at_each(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_solution(root)
    first, looked = open_split(_config(root), "val"), list[str]()
    monkeypatch.setattr(data, "_stamp", lambda path, stamp=data._stamp: looked.append(path) or stamp(path))
    assert open_split(_config(root), "val") is first
    assert str(root / "val") in looked and not [path for path in looked if path.endswith(".JPEG")]
    (root / "val" / f"{_name(0)}.JPEG").rename(root / "val" / f"{_name(99)}.JPEG")
    with pytest.raises(DataError, match=_name(99)):
        open_split(_config(root), "val")


def test_names_of_the_21k_archive(root: Path, tmp_path: Path) -> None:
    other = _sorted_into_folders(root)
    plain = open_split(_config(other), "val").digest
    for split in ("train", "val"):
        (other / split).rename(other / f"imagenet21k_{split}")
    (other / "imagenet21k_small_classes" / "n99999999").mkdir(parents=True)
    assert open_split(_config(other), "val").digest == plain
    with pytest.raises(DataError, match=r"small_classes holds the classes that are left out.*data\.test_split=val"):
        open_split(_config(other), "imagenet21k_small_classes")


def _unreadable_meta(root: Path) -> None:
    (root / META).write_bytes(b"not a MATLAB file at all" * 10)


def _renamed_image(root: Path) -> None:
    (root / "val" / f"{_name(2)}.JPEG").rename(root / "val" / "ILSVRC2012_val_00000002b.JPEG")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / GROUND_TRUTH).unlink(), r"without class folders.*development kit.*ILSVRC2012_devkit_t12"),
        (lambda root: (root / META).unlink(), rf"{META} is missing"),
        (_unreadable_meta, r"cannot be read as the kit's table"),
        (lambda root: (root / GROUND_TRUTH).write_text("1\n2\n"), r"has 2 lines but .* has 6 images"),
        (lambda root: (root / GROUND_TRUTH).write_text("1\n2\n3\n9\n1\n1\n"), r"line 4: '9' is no class number"),
        (_renamed_image, r"ILSVRC2012_val_00000002b\.JPEG stands where image 3 is expected"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[1]), r"of class n01443537, which is none of the 2 training"),
        (lambda root: (root / "train" / WNIDS[1]).rename(root / "train" / "goldfish"), r"'goldfish' is no WordNet id"),
        (lambda root: shutil.rmtree(root / "val"), r"no folder val \(or imagenet21k_val\)"),
        # Half of what moves the images into class folders.
        (lambda root: (root / "val" / WNIDS[0]).mkdir(), r"val_00000\d\d\d\.JPEG lies beside class folders"),
    ],
)
def test_what_is_wrong_is_told(root: Path, spoil, message: str) -> None:
    write_kit(root)
    spoil(root)
    with pytest.raises(DataError, match=message):
        open_split(_config(root), "val")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n", r"does not begin with ImageId"),
        ("ImageId,PredictionString\nx,cat 1 2 3 4\n", r"line 2: no WordNet id"),
        (f"ImageId,PredictionString\n{_name(0)},{WNIDS[0]} 1 2 3 4\n", r"names 1 images but .* has 6, among them"),
    ],
)
def test_what_is_wrong_with_kaggle_s_table_is_told(root: Path, text: str, message: str) -> None:
    (root / SOLUTION).write_text(text)
    with pytest.raises(DataError, match=message):
        open_split(_config(root), "val")
    (root / SOLUTION).write_text(text, encoding="utf-16")
    with pytest.raises(DataError, match=rf"{SOLUTION} cannot be read as text in UTF-8"):
        open_split(_config(root), "val")


def test_a_class_without_validation_images_is_let_through(root: Path, files) -> None:
    files.write_folder(root, "train", ["n09999999"], per_class=1)
    write_kit(root)
    assert torch.bincount(open_split(_config(root), "val").labels, minlength=4).tolist() == [2, 2, 2, 0]
