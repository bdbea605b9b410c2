"""Reads sets that others made: the encoded images of a split → a SyntheticSet, without guessing."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cudd_core.data.encoded import EncodedSplit
from cudd_core.data.image_folder import open_image_folder
from cudd_core.data.labels import place_in_class
from cudd_core.data.pixels import FORMATS, Decoding, decode, is_grey, reason
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError
from cudd_core.exchange.tree import ordered
from cudd_core.image_threads import decode_into
from cudd_core.records import SyntheticSet

# The size and channels given here are not used: images are decoded below, at their own size.
_ANY = DataConfig(source="image_folder", channels=3, image_size=8, greyscale="convert")


def any_images(source: str, root: Path, split: str) -> DataConfig:
    """Return a configuration that opens images of any kind in `root`/`split`, to get their encoded bytes."""
    return _ANY.model_copy(update={"source": source, "root": str(root), "train_split": split})


def read_class_folders(folder: Path, numbered: re.Pattern[str] | None = None) -> SyntheticSet:
    """Read one folder per class. Classes are in `class_order` or, with `numbered`, in the order of folder numbers.

    Raises:
        DataError: the numbers are not 0 … K − 1, or `read_split` or the source `image_folder` refuses something.
    """
    split = open_image_folder(any_images("image_folder", folder.parent, folder.name), folder.name)
    names = split.class_names
    if numbered is None:
        return read_split(split, split.labels, names)
    numbers = [int(match[1]) for name in names if (match := numbered.fullmatch(name))]
    if sorted(numbers) != list(range(len(names))):
        raise DataError(
            f"{folder} must have one folder for each class, numbered 0 to {len(names) - 1}; it has "
            f"{', '.join(sorted(names)[:5])}{', …' if len(names) > 5 else ''}."
        )
    return read_split(split, torch.tensor(numbers)[split.labels], tuple(map(str, range(len(names)))))


def read_split(split: EncodedSplit, labels: Tensor, class_names: tuple[str, ...]) -> SyntheticSet:
    """Return all images of a split, at their own size, as a set. Slices number the images of each class.

    Raises:
        DataError: an image cannot be read, is not square, or differs in kind from the first one; the message names it.
    """
    first_name, data = split.encoded(0)
    grey, size = _look(first_name, data)
    if size[0] != size[1]:
        raise DataError(f"{first_name} has {size[0]} × {size[1]} pixels. Images must be square: crop or resize them.")
    channels = 1 if grey else 3

    def decode_one(index: int) -> Tensor:
        name, data = split.encoded(index)
        own_grey, own_size = _look(name, data)
        if own_size != size or own_grey != grey:
            raise DataError(
                f"{name} is {_words(own_grey, own_size)}, but {first_name} is {_words(grey, size)}. All images of a "
                "set must be alike: convert them."
            )
        return decode(data, name, Decoding(channels, size[0]))

    images = torch.empty((len(split), channels, size[1], size[0]), dtype=torch.uint8)
    decode_into(images, range(len(split)), decode_one)
    columns = {
        "label": labels,
        "slice": place_in_class(labels),
        "source": torch.full_like(labels, -1),
        "curriculum": torch.ones_like(labels),
    }
    return ordered(images, columns, class_names)


def _look(name: str, data: bytes) -> tuple[bool, tuple[int, int]]:
    """Return whether an encoded image is greyscale, and its (width, height), without decoding pixels."""
    try:
        with Image.open(BytesIO(data), formats=FORMATS) as image:
            return is_grey(image), image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be read as an image ({reason(error)}). Replace it or take it out.") from error


def _words(grey: bool, size: tuple[int, int]) -> str:
    return f"{'greyscale' if grey else 'colour'}, {size[0]} × {size[1]} px"
