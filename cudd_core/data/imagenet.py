"""ImageNet-1K and ImageNet-21K-P as unpacked: class folders by WordNet id; validation images may also be flat.

Training images: `train/WNID/FILE` (or `imagenet21k_train/`, the name in the archive of ImageNet-21K-P). Validation
images: the same layout under `val/` (`imagenet21k_val/`), or all directly in `val/`, as in the archive, with their
classes in one of

- the development kit: `ILSVRC2012_validation_ground_truth.txt` and `meta.mat`, in the root or where the kit unpacks to;
- `LOC_val_solution.csv` from the Kaggle copy.

Classes are the WordNet ids, **sorted**: the order of torchvision's and timm's weights. The kit's own numbers
(ILSVRC2012_ID, 1 to 1000) are in another order, which `meta.mat` translates. Both layouts of the validation images give
the same split, including its digest, and the same as `image_folder` gives for class folders.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from cudd_core.data.filesystem import read_text, require_folder
from cudd_core.data.image_folder import (
    FolderSplit,
    class_order,
    list_classes,
    list_folders,
    list_images,
    list_images_of,
    split_of_listings,
)
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

GROUND_TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
SOLUTION = "LOC_val_solution.csv"
LEFT_OUT = "imagenet21k_small_classes"
"""Folder in the ImageNet-21K-P archive with the classes that the data set excludes."""

_KITS = (".", "data", "ILSVRC2012_devkit_t12/data", "devkit/data", "ILSVRC2012_devkit_t12")
_IMAGES = (".", "ILSVRC/Data/CLS-LOC")
_SPLITS = ("train", "val")
_WNID = re.compile(r"n\d{8}")


def open_imagenet(config: DataConfig, split: str) -> FolderSplit:
    """Open `train` or `val` under `config.root`.

    Raises:
        DataError: a missing folder, another split, folders that are not WordNet ids, images beside class folders,
            validation images without their classes, ground truth that does not fit the images or the training classes,
            or a file that is not an image.
    """
    root = require_folder(config.root)
    if split not in _SPLITS:
        more = " imagenet21k_small_classes holds the classes that are left out." if split == LEFT_OUT else ""
        raise DataError(
            f"ImageNet has the splits train and val, not {split!r}; its test images have no labels.{more} "
            "Set data.train_split=train and data.test_split=val."
        )
    training = _folder(root, "train")
    names = class_order(list_classes(training))
    if not names:
        raise DataError(
            f"{training} has no class folders. The layout is train/WNID/IMAGE: unpack the classes' archives."
        )
    if strange := [name for name in names if not _WNID.fullmatch(name)]:
        raise DataError(
            f"{training}: {strange[0]!r} is no WordNet id (n01440764). Rename the folders, or read them with "
            "data.source=image_folder."
        )
    folder = training if split == "train" else _folder(root, "val")
    found = set(list_classes(folder))
    if unknown := class_order(list(found - set(names))):
        raise DataError(
            f"{folder} has {len(unknown)} classes that {training} does not have: {', '.join(unknown[:5])}. Unpack all."
        )
    if found:
        listings = list_images_of([folder / name if name in found else None for name in names])
        places = [str(folder / name) for name in names]
    else:
        listings, places = _flat(root, folder, names), [str(folder)] * len(names)
    return split_of_listings("image_folder", names, places, listings, config, split)


def _folder(root: Path, split: str) -> Path:
    candidates = [root / base / name for base in _IMAGES for name in (split, f"imagenet21k_{split}")]
    for folder in candidates:
        if folder.is_dir():
            return folder
    there = ", ".join(list_folders(root)) or "none"
    raise DataError(
        f"{root} has no folder {split} (or imagenet21k_{split}). Folders there: {there}. Unpack the archive."
    )


def _flat(root: Path, folder: Path, names: tuple[str, ...]) -> list[list[tuple[str, int]]]:
    """Return (file name, bytes) of the validation images of each class, sorted by name."""
    files = list_images(folder)
    where, classes = _classes_of(root, folder, [name for name, _ in files])
    rows: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    for (file, size), name in zip(files, classes, strict=True):
        if name not in rows:
            raise DataError(
                f"{where}: {file} is of class {name}, which is none of the {len(names)} training classes. Unpack the "
                "rest of the training images, or put the validation images of your classes into class folders."
            )
        rows[name].append((file, size))
    return list(rows.values())


def _classes_of(root: Path, folder: Path, files: list[str]) -> tuple[Path, list[str]]:
    """Return the file that lists the classes of flat validation images, and the WordNet id of each of `files`."""
    solution = root / SOLUTION
    if solution.is_file():
        told = _solution(solution)
        lacking = [file for file in files if Path(file).stem not in told]
        if lacking or len(told) != len(files):
            raise DataError(
                f"{solution} names {len(told)} images but {folder} has {len(files)}"
                f"{f', among them {lacking[0]}' if lacking else ''}. Copy both again."
            )
        return solution, [told[Path(file).stem] for file in files]
    kits = [root / place for place in _KITS if (root / place / GROUND_TRUTH).is_file()]
    if not kits:
        raise DataError(
            f"{folder} holds images without class folders, and {root} has neither the development kit "
            f"({GROUND_TRUTH} with {META}) nor {SOLUTION}, which tell their classes. Unpack "
            "ILSVRC2012_devkit_t12.tar.gz there, or move the images into class folders."
        )
    truth = kits[0] / GROUND_TRUTH
    numbers = truth.read_text(encoding="ascii", errors="replace").split()
    if len(numbers) != len(files):
        raise DataError(f"{truth} has {len(numbers)} lines but {folder} has {len(files)} images. Unpack both again.")
    wnids = _meta(kits[0] / META)
    chosen = []
    for position, (file, number) in enumerate(zip(files, numbers, strict=True), start=1):
        if not Path(file).stem.endswith(f"_{position:08}"):
            raise DataError(
                f"{folder}: {file} stands where image {position} is expected (ILSVRC2012_val_{position:08}). The "
                "ground truth goes by these names: do not rename the files, and unpack all of them."
            )
        if number not in wnids:
            raise DataError(f"{truth}, line {position}: {number!r} is no class number of {META}.")
        chosen.append(wnids[number])
    return truth, chosen


def _solution(path: Path) -> dict[str, str]:
    """Return image name → WordNet id of Kaggle's table (ImageId, PredictionString: WNID and boxes)."""
    rows = list(csv.reader(read_text(path).splitlines()))
    if not rows or rows[0][:2] != ["ImageId", "PredictionString"]:
        raise DataError(f"{path} does not begin with ImageId,PredictionString. Copy it again.")
    told = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) < 2 or not _WNID.fullmatch(row[1].partition(" ")[0]):
            raise DataError(f"{path}, line {number}: no WordNet id after the image's name.")
        told[row[0]] = row[1].partition(" ")[0]
    return told


def _meta(path: Path) -> dict[str, str]:
    """Return ILSVRC2012_ID (as text) → WordNet id of the kit's leaf classes."""
    if not path.is_file():
        raise DataError(
            f"{path} is missing: it tells which class each number of {GROUND_TRUTH} is. Unpack the whole kit."
        )
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        return {str(int(row[0])): str(row[1]) for row in synsets if int(row[4]) == 0}
    except Exception as error:  # SciPy raises various errors for a file that is not a MATLAB file
        raise DataError(
            f"{path} cannot be read as the kit's table of classes ({error}). Unpack the kit again."
        ) from error
