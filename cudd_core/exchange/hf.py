"""Hugging Face Parquet: `datasets.load_dataset(folder)` gives an Image and a ClassLabel column.

The card (README.md) names the data files, so that nothing else in the folder is mistaken for data.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import torch

from cudd_core.data.hf_parquet import open_hf_parquet
from cudd_core.errors import DataError
from cudd_core.exchange.bundle import Bundle, Written
from cudd_core.exchange.foreign import any_images, read_split
from cudd_core.exchange.manifest import ExportManifest
from cudd_core.exchange.tree import UNREADABLE, ordered
from cudd_core.image_table import COLUMNS, IMAGE_FILE, read_images, write_images
from cudd_core.records import SyntheticSet


def write(bundle: Bundle, folder: Path) -> Written:
    """Write the images in the order of the set, with columns image, label, slice, source, curriculum."""
    write_images(bundle.synthetic, folder / IMAGE_FILE)
    return Written(torch.arange(len(bundle.synthetic.labels)), ".")


def read_own(folder: Path, manifest: ExportManifest) -> SyntheticSet:
    """Read back what `write` wrote. Raises DataError if the file does not fit the manifest."""
    try:
        tensors = read_images(folder / IMAGE_FILE, manifest.images)
        columns = {column: tensors[field] for field, column in COLUMNS.items()}
        return ordered(tensors["images"], columns, manifest.classes)
    except (*UNREADABLE, pa.ArrowException) as error:
        raise DataError(f"{folder / IMAGE_FILE} cannot be read ({error}). Export or copy the set again.") from error


def recognises(folder: Path) -> bool:
    """Whether there are Parquet files in the folder or in one below it, where `open_hf_parquet` looks for them."""
    return any(any(folder.glob(pattern)) for pattern in ("*.parquet", "[!.]*/*.parquet"))


def read(folder: Path) -> SyntheticSet:
    """Read the split `train` of any image data set. Raises DataError as the source `hf_parquet` does."""
    split = open_hf_parquet(any_images("hf_parquet", folder, "train"), "train")
    return read_split(split, split.labels, split.class_names)
