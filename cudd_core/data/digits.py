"""scikit-learn's bundled handwritten digits: real data without a download (1,797 images of 8 × 8 pixels)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cudd_core.data.labels import place_in_class
from cudd_core.data.memory import ArraySplit
from cudd_core.data.pixels import to_pixels
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

SPLITS = ("train", "test")


def open_digits(config: DataConfig, split: str) -> ArraySplit:
    """Return `train` (1,442 images) or `test` (355): of each class, every fifth image is a test image.

    Nothing is drawn at random, so the split is the same everywhere. Pixels 0-16 are scaled to 0-255, then resized.

    Raises:
        DataError: data.channels is 3 without data.greyscale=convert, or an unknown split.
    """
    if config.channels != 1 and config.greyscale != "convert":
        raise DataError(f"The digits are greyscale, but data.channels is {config.channels}. Set data.channels=1.")
    if split not in SPLITS:
        raise DataError(f"The digits have no split {split!r}. Splits: {', '.join(SPLITS)}.")
    table = _table()
    classes = table[:, 64].astype(np.int64)
    is_test = place_in_class(torch.from_numpy(classes)).numpy() % 5 == 4
    chosen = np.flatnonzero(is_test if split == "test" else ~is_test)

    grey = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = [to_pixels(Image.fromarray(grey[i]), f"digit {i}", config.decoding) for i in chosen]
    return ArraySplit(torch.stack(pixels), torch.from_numpy(classes[chosen]), tuple(str(label) for label in range(10)))


def _table() -> npt.NDArray[np.uint8]:
    """Return a row of 64 pixels and a label for each image, without importing scikit-learn, which takes seconds."""
    package = importlib.util.find_spec("sklearn")
    assert package is not None and package.origin is not None
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    return np.loadtxt(file, delimiter=",", dtype=np.uint8)
