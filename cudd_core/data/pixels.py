"""One encoded image → one square uint8 tensor, with the file named when it cannot be done."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cudd_core.errors import DataError

GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_THREADS = min(4, os.cpu_count() or 1)
_BLOCK = 16  # images a thread takes at a time: tiny ones take less time than handing them over


def to_pixels(image: Image.Image, name: str, channels: int, image_size: int, *, convert_grey: bool = False) -> Tensor:
    """Resize the short side to `image_size` (bilinear, antialiased), crop the centre square.

    Palette, RGBA, CMYK and the like become RGB; transparency is dropped. Pillow resizes in fixed-point arithmetic, so
    the bytes do not depend on threads or instruction sets.

    Returns:
        uint8 [channels, image_size, image_size], 0-255.

    Raises:
        DataError: a greyscale image where 3 channels are wanted, a colour image where 1 is, or a pixel format without
            a fixed range; the message names `name`.
    """
    grey = image.mode in GREY_MODES
    if grey and channels == 3 and convert_grey:
        image, grey = image.convert("RGB"), False
    if grey and channels != 1:
        raise DataError(
            f"{name} is greyscale (mode {image.mode}), but data.channels is {channels}. "
            "Set data.channels=1 if all are, or data.greyscale=convert if a few are."
        )
    if not grey and channels == 1:
        raise DataError(
            f"{name} is a colour image (mode {image.mode}), but data.channels is 1. "
            "Set data.channels=3, or convert the files to greyscale."
        )
    image = _eight_bit_grey(image, name) if grey else _rgb(image)
    if image.size != (image_size, image_size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        # Scaling the centre square equals scaling all and cropping, and stays small for very elongated images.
        image = image.resize(
            (image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.unsqueeze(0) if grey else pixels.permute(2, 0, 1)


def decode(data: bytes, name: str, channels: int, image_size: int, *, convert_grey: bool = False) -> Tensor:
    """Decode the bytes of an image file; see `to_pixels`.

    Raises:
        DataError: not an image, truncated or damaged, or the wrong number of channels; names `name`.
    """
    try:
        image = Image.open(BytesIO(data))
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError on damaged files
        raise DataError(
            f"{name} cannot be read as an image ({error}). It is truncated, damaged or not an image: "
            "replace it or take it out."
        ) from error
    return to_pixels(image, name, channels, image_size, convert_grey=convert_grey)


def decode_many(indices: Sequence[int], decode_one: Callable[[int], Tensor]) -> list[Tensor]:
    """Apply `decode_one` to every index in a small thread pool (Pillow releases the GIL); order is kept."""
    if len(indices) <= _BLOCK:
        return [decode_one(index) for index in indices]
    blocks = [indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
        decoded = pool.map(lambda block: [decode_one(index) for index in block], blocks)
        return [pixels for block in decoded for pixels in block]


def _eight_bit_grey(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.array(image, dtype=np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name} has {image.mode}-mode pixels (32 bits), whose black and white are unknown. "
            "Convert the files to 8 or 16 bits per pixel."
        )
    return image.convert("L")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # by way of RGBA: a palette with per-entry transparency warns otherwise
    return image.convert("RGB")
