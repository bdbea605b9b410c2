"""The 19 corruptions of ImageNet-C at five severities, for square images of any size, greyscale or RGB.

Implemented here with NumPy, SciPy and Pillow, and the published constants (`severities`). A corrupted image is
determined by (seed, corruption, severity, position of the image) and the clean image, on every machine with the same
library versions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cudd_core.data.corruptions import blur, digital, noise, weather
from cudd_core.data.corruptions.severities import CONSTANTS, SEVERITIES, benchmark_of
from cudd_core.seeding import host_rng

__all__ = ["CORRUPTIONS", "SEVERITIES", "VERSION", "applicable", "benchmark_of", "corrupt"]

VERSION = 2
"""Incremented whenever a change alters the corrupted images."""

_Corruption = Callable[[Any, Any, np.random.Generator], Any]

CORRUPTIONS: dict[str, _Corruption] = {
    function.__name__: function
    for function in (
        *(noise.gaussian_noise, noise.shot_noise, noise.impulse_noise),
        *(blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur),
        *(weather.snow, weather.frost, weather.fog, digital.brightness),
        *(digital.contrast, digital.elastic_transform, digital.pixelate, digital.jpeg_compression),
        # The benchmark's four extra ones.
        *(noise.speckle_noise, blur.gaussian_blur, weather.spatter, digital.saturate),
    )
}
"""Name → function of (image float [C, H, W] in [0, 1], constants, generator), in the benchmark's order."""


def applicable(channels: int) -> tuple[str, ...]:
    """Return the names of the corruptions for images with this many channels: greyscale has no saturation."""
    return tuple(name for name in CORRUPTIONS if channels == 3 or name != "saturate")


def corrupt(
    image: npt.NDArray[np.uint8], corruption: str, severity: int, seed: int, index: int
) -> npt.NDArray[np.uint8]:
    """Return the corrupted image, uint8 [C, H, W], rounded to the nearest level.

    Args:
        image: uint8 [C, H, W], H = W; not changed.
        corruption: one of `applicable(C)`.
        severity: 1 … 5.
        seed: seed of the whole corrupted set.
        index: position of the image in its split, so that no two images get the same noise.
    """
    constants = CONSTANTS[benchmark_of(image.shape[-1])][corruption][severity - 1]
    rng = host_rng(seed, "corrupt", corruption, severity, index)
    corrupted = CORRUPTIONS[corruption](image / 255.0, constants, rng)
    levels: npt.NDArray[np.uint8] = np.round(np.clip(corrupted, 0, 1) * 255).astype(np.uint8)
    return levels
