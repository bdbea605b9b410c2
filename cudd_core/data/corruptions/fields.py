"""Building blocks of several corruptions: Gaussian blur, motion blur, zoom, plasma."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Image: TypeAlias = npt.NDArray[np.float64]
"""[C, H, W] in [0, 1], H = W, C 1 or 3. A field is [H, W]."""


def blurred(x: Image, sigma: float, *, mode: str = "nearest", truncate: float = 4.0) -> Image:
    """Gaussian blur over the last two axes; `sigma` in pixels, 0 for none."""
    deviations = (0,) * (x.ndim - 2) + (sigma, sigma)
    result: Image = ndimage.gaussian_filter(x, deviations, mode=mode, truncate=truncate)
    return result


def motion_blurred(x: Image, radius: int, sigma: float, degrees: float) -> Image:
    """Smear along a line: half a Gaussian of deviation `sigma` over 2·radius + 1 whole-pixel steps, edges repeated.

    `degrees` are measured from the x axis towards the bottom of the image. The result is a weighted mean: weights sum
    to 1.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    angle = math.radians(degrees)
    down = np.ceil(steps * math.sin(angle) - 0.5).astype(int)
    right = np.ceil(steps * math.cos(angle) - 0.5).astype(int)
    height, width = x.shape[-2:]
    reach = int(max(abs(down).max(), abs(right).max()))
    padded = np.pad(x, [(0, 0)] * (x.ndim - 2) + [(reach, reach)] * 2, mode="edge")
    total = np.zeros_like(x)
    for weight, dy, dx in zip(weights, down, right, strict=True):
        total += weight * padded[..., reach + dy : reach + dy + height, reach + dx : reach + dx + width]
    return total


def zoomed(x: Image, factor: float) -> Image:
    """Enlarge the centre by `factor` ≥ 1 to the original size, with linear interpolation."""
    size = x.shape[-1]
    cut = math.ceil(size / factor)
    large = round(cut * factor)
    # Corner pixels map to corner pixels; if the result is too large, its middle is kept.
    places = np.linspace(0, cut - 1, large)[(large - size) // 2 :][:size] + (size - cut) // 2
    low = np.floor(places).astype(int)
    high, share = np.minimum(low + 1, size - 1), places - low
    rows = x[..., low, :] * (1 - share)[:, None] + x[..., high, :] * share[:, None]
    result: Image = rows[..., low] * (1 - share) + rows[..., high] * share
    return result


def plasma(size: int, decay: float, rng: np.random.Generator) -> Image:
    """Return a fractal field [size, size] in [0, 1] by the diamond-square algorithm on a torus.

    The displacement shrinks by a factor of `decay`² from one scale to the next finer one: the larger, the smoother.
    """
    side = 1 << max(1, (size - 1).bit_length())
    field = np.zeros((side, side))
    amplitude, step = 1.0, side
    while step >= 2:
        half = step // 2

        def displaced(total: Image, amplitude: float = amplitude) -> Image:
            return total / 4 + amplitude * rng.uniform(-1, 1, total.shape)

        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=0)
        centres = field[half::step, half::step] = displaced(pairs + np.roll(pairs, -1, axis=1))
        across = corners + np.roll(corners, -1, axis=1)
        field[::step, half::step] = displaced(across + centres + np.roll(centres, 1, axis=0))
        field[half::step, ::step] = displaced(pairs + centres + np.roll(centres, 1, axis=1))
        amplitude /= decay**2
        step = half
    field -= field.min()
    shown: Image = field[:size, :size] / field.max()
    return shown
