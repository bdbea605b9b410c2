"""One encoded image → one square uint8 tensor; errors name the file (docs/data.md)."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from cudd_core.errors import DataError

GREY_MODES = {"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What images may be encoded as. Pillow knows more, of which EPS is a program that it gives to Ghostscript."""

_SIXTEENTH = 1 << 12  # 16-bit values below this use less than a sixteenth of their range


@dataclass(frozen=True)
class Decoding:
    """How an image becomes pixels; the fields are those of `DataConfig`."""

    channels: int
    image_size: int
    convert_grey: bool = False
    convert_colour: bool = False
    white: int = 0


def to_pixels(image: Image.Image, name: str, how: Decoding) -> Tensor:
    """Resize the short side to `how.image_size` (bilinear, antialiased), crop the centre square.

    Palette, RGBA, CMYK and similar images become RGB; transparency is dropped. Pillow resizes in fixed-point
    arithmetic, so the bytes do not depend on threads or instruction sets.

    Returns:
        uint8 [how.channels, how.image_size, how.image_size], 0-255.

    Raises:
        DataError: a greyscale image where 3 channels are wanted, a colour image where 1 is wanted, a pixel format
            without a fixed range, or 16 bits per pixel of which hardly anything would remain; names `name`.
    """
    grey = image.mode in GREY_MODES
    if grey and how.channels == 3 and not how.convert_grey:
        raise DataError(
            f"{name} is greyscale (mode {image.mode}), but data.channels is {how.channels}. "
            "Set data.channels=1 if all are, or data.greyscale=convert if a few are."
        )
    if not grey and how.channels == 1 and not how.convert_colour:
        raise DataError(
            f"{name} is a colour image (mode {image.mode}), but data.channels is 1. "
            "Set data.channels=3, or data.colour=convert to keep its brightness alone."
        )
    image = _eight_bit_grey(image, name, how.white) if grey else _rgb(image)
    if how.channels == 3:
        image = image.convert("RGB")
    elif not grey:
        image = image.convert("L")
    image_size = how.image_size
    if image.size != (image_size, image_size):
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        if side == image_size:  # an offset of half a pixel would average neighbours everywhere
            left, top = int(left), int(top)
        # Scaling the centre square equals scaling everything and cropping, and stays small for elongated images.
        image = image.resize(
            (image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
        )
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8))
    return pixels.unsqueeze(0) if how.channels == 1 else pixels.permute(2, 0, 1)


def decode(data: bytes, name: str, how: Decoding) -> Tensor:
    """Decode the bytes of an image file; see `to_pixels`.

    Raises:
        DataError: not an image, truncated or damaged, more pixels than Pillow reads (179 million), several images in
            one file, or rejected by `to_pixels`; names `name`.
    """
    try:
        file = Image.open(BytesIO(data), formats=FORMATS)
        frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)  # a phone's JPEG; its first is the photo
        sixteen_bits, grey = _sixteen_bits(file), is_grey(file)
        file.load()
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} has too many pixels to be read: {error} Scale it down or take it out.") from error
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError on damaged files
        raise DataError(
            f"{name} cannot be read as an image ({reason(error)}). It is truncated, damaged or not an image: "
            "replace it or take it out."
        ) from error
    if frames > 1:
        raise DataError(
            f"{name} holds {frames} images (an animation, a volume or several pages); one file is one image here. "
            "Save the frames that are meant as files of their own."
        )
    image: Image.Image = file
    if file.mode == "I" and file.format == "PPM":  # values from 0 to 65535
        image = Image.fromarray(np.array(image).astype(np.uint16))
    elif file.mode in ("RGB", "RGBA") and sixteen_bits:
        _check_upper_byte(image, name, how.white)
        if grey:
            image = image.convert("LA")
    return to_pixels(image, name, how)


def reason(error: Exception) -> str:
    """Return Pillow's description of an error, without the name of the buffer it read."""
    return "no known image format" if isinstance(error, UnidentifiedImageError) else str(error)


def _sixteen_bits(image: ImageFile.ImageFile) -> bool:
    """Return whether a colour image that is not loaded yet has 16 bits per value in its file."""
    arguments = [tile[3] for tile in image.tile]
    if image.format == "PPM":  # (raw mode, highest value)
        return any(isinstance(each, tuple) and each[1] > 255 for each in arguments)
    return any(";16" in str(each) for each in arguments)


def is_grey(image: ImageFile.ImageFile) -> bool:
    """Return whether an image that is not loaded yet is greyscale; Pillow loads 16-bit grey with opacity as colour."""
    return image.mode in GREY_MODES or any("LA;16" in str(tile[3]) for tile in image.tile)


def _eight_bit_grey(image: Image.Image, name: str, white: int) -> Image.Image:
    if image.mode.startswith("I;16"):
        values = np.array(image, dtype=np.uint16)
        highest = int(values.max())
        if white and highest > white:
            raise DataError(
                f"{name} has the value {highest}, above data.white = {white}. Set data.white to the highest."
            )
        if not white and 0 < highest < _SIXTEENTH:
            raise DataError(
                f"{name} has 16 bits a pixel but no value above {highest}: 8 bits would keep {highest >> 8} of it. Set "
                "data.white to the value that is white (4095 for 12 bits), or to 65535 if the image is that dark."
            )
        scaled = values >> 8 if white in (0, 65535) else (values.astype(np.uint32) * 255 + white // 2) // white
        return Image.fromarray(scaled.astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(
            f"{name} has {image.mode}-mode pixels (32 bits), whose black and white are unknown. "
            "Convert the files to 8 or 16 bits per pixel."
        )
    return image.convert("LA").convert("L") if image.mode == "La" else image.convert("L")


def _check_upper_byte(image: Image.Image, name: str, white: int) -> None:
    """Reject 16-bit colour, of which Pillow keeps 8 (PPM: rounded), if those are nearly 0 or `white` would scale."""
    highest = max(band[1] for band in image.convert("RGB").getextrema())  # type: ignore[index]
    if white not in (0, 65535) or (not white and highest <= 16):
        raise DataError(
            f"{name} has 16 bits a colour, of which the upper 8 are read (at most {highest} of 255 here), and "
            "data.white is for greyscale alone. Convert the files to 8 bits per colour."
        )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA")  # via RGBA, because Pillow warns about a palette with per-entry transparency
    return image.convert("RGB")
