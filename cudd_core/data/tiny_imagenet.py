"""Tiny-ImageNet as downloaded: train/WNID/images/, and val/images/ with the labels in val_annotations.txt."""

from __future__ import annotations

from pathlib import Path

from cudd_core.data.filesystem import read_text, require_folder
from cudd_core.data.image_folder import (
    FolderSplit,
    class_order,
    list_folders,
    list_images,
    list_images_of,
    split_of_listings,
)
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

ANNOTATIONS = "val_annotations.txt"
"""One line per image, with tab-separated values: file, class, and a box that is not needed here."""
CLASSES = "wnids.txt"


def open_tiny_imagenet(config: DataConfig, split: str) -> FolderSplit:
    """Open `train` or `val` of the folder that the archive unpacks to.

    Classes are the WordNet ids of wnids.txt, **sorted**, as torchvision's ImageFolder orders them and as teachers are
    trained. The order in the file is different.

    Raises:
        DataError: a missing file or folder, another split, different classes in training folders, wnids.txt and
            annotations, an annotated image that is missing, or a file that is not an image.
    """
    root = require_folder(config.root)
    if not (root / CLASSES).is_file():
        raise DataError(
            f"{root} has no {CLASSES}, so it is not Tiny-ImageNet as it is downloaded. If its validation images were "
            "moved into class folders, read it with data.source=image_folder."
        )
    names = class_order(read_text(root / CLASSES).split())
    found = list_folders(root / "train") if (root / "train").is_dir() else []
    if set(found) != set(names):
        differing = sorted(set(found) ^ set(names))
        raise DataError(
            f"{root}: {CLASSES} and the folders of train/ differ in {len(differing)} classes: "
            f"{', '.join(differing[:5])}. Unpack the archive again."
        )
    if split == "train":
        folders = [root / "train" / name / "images" for name in names]
        for folder in folders:
            if not folder.is_dir():
                raise DataError(f"{folder} is missing. Unpack the archive again.")
        listings = list_images_of(folders)
    elif split == "val":
        folders = [root / "val" / "images"] * len(names)
        listings = _annotated(root / "val", names)
    else:
        raise DataError(f"Tiny-ImageNet has the splits train and val, not {split!r}; its test images have no labels.")
    return split_of_listings("tiny_imagenet", names, list(map(str, folders)), listings, config, split)


def _annotated(folder: Path, names: tuple[str, ...]) -> list[list[tuple[str, int]]]:
    """Return (file name, bytes) of the annotated images of each class, sorted by name."""
    if not (folder / ANNOTATIONS).is_file() or not (folder / "images").is_dir():
        raise DataError(f"{folder} needs {ANNOTATIONS} and a folder images. Unpack the archive again.")
    sizes = dict(list_images(folder / "images"))
    rows: dict[str, list[tuple[str, int]]] = {name: [] for name in names}
    lines = read_text(folder / ANNOTATIONS).splitlines()
    for number, line in enumerate(lines, start=1):
        file, name, *_ = (*line.split("\t"), "")
        where = f"{folder / ANNOTATIONS}, line {number}"
        if name not in rows:
            raise DataError(f"{where}: {name!r} is none of the {len(names)} classes of {CLASSES}.")
        if file not in sizes:
            raise DataError(f"{where}: there is no image {file!r} in {folder / 'images'}, or it is named twice.")
        rows[name].append((file, sizes.pop(file)))
    if sizes:
        raise DataError(f"{folder / ANNOTATIONS} does not name {len(sizes)} images, among them {min(sizes)}.")
    return [sorted(found) for found in rows.values()]
