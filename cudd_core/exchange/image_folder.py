"""The image folder: `train/CLASS/NUMBER.png`, for torchvision's ImageFolder and for the data source `image_folder`."""

from __future__ import annotations

from pathlib import Path

from cudd_core.data.image_folder import list_folders
from cudd_core.errors import DataError
from cudd_core.exchange.bundle import Bundle, Written
from cudd_core.exchange.class_folders import class_folders
from cudd_core.exchange.foreign import read_class_folders
from cudd_core.exchange.tree import digits, write_tree
from cudd_core.records import SyntheticSet

ROOT = "train"


def write(bundle: Bundle, folder: Path) -> Written:
    """Write the images of a set; folders sort in the order of the classes, files in the order of the slices."""
    synthetic = bundle.synthetic
    width = digits(len(synthetic.labels), 5)
    folders = class_folders(synthetic.class_names)
    return write_tree(synthetic, folder, ROOT, folders, lambda label, rank: f"{rank:0{width}d}")


def read(folder: Path) -> SyntheticSet:
    """Read any image folder: `folder`/train/CLASS/IMAGE or `folder`/CLASS/IMAGE, classes in `class_order`.

    Raises:
        DataError: there are no class folders, or `read_class_folders` refuses something.
    """
    found = list_folders(folder)
    if not found:
        raise DataError(f"{folder} has no class folders. The layout is CLASS/IMAGE or train/CLASS/IMAGE.")
    return read_class_folders(folder / ROOT if ROOT in found and list_folders(folder / ROOT) else folder)
