"""Blur: Gaussian, defocus, frosted glass, motion and zoom."""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from cudd_core.data.corruptions.fields import Image, blurred, motion_blurred, zoomed


def gaussian_blur(x: Image, sigma: float, _: np.random.Generator) -> Image:
    """Gaussian blur of `sigma` pixels."""
    return blurred(x, sigma)


def defocus_blur(x: Image, disc: tuple[float, float], _: np.random.Generator) -> Image:
    """Convolve with a disc; `disc`: radius in pixels, and deviation of the small blur that softens its edge."""
    radius, softness = disc
    soft = 1 if radius <= 8 else 2  # the small blur reaches this many pixels
    reach = math.ceil(radius) + soft
    away = np.arange(-reach, reach + 1)
    kernel = (away[:, None] ** 2 + away**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(kernel / kernel.sum(), softness, mode="constant", radius=soft)
    result: Image = ndimage.correlate(x, kernel[None], mode="mirror")
    return result


def glass_blur(x: Image, glass: tuple[float, int, int], rng: np.random.Generator) -> Image:
    """Blur, let every pixel take the colour of a random neighbour, several times over, and blur again.

    `glass`: sigma of both blurs, distance d of the farthest neighbour in pixels, number of passes. A pass goes from the
    bottom right to the top left and sees its own changes. As in the published sets, neighbours are -d … d - 1 pixels
    away and keep their own colour, and the image has 8 bits between the blurs.
    """
    sigma, distance, passes = glass
    channels, size, _ = x.shape
    inner = np.arange(size - distance, distance, -1)
    pixels = (inner[:, None] * size + inner).ravel()
    taken = list(range(size * size))
    for _ in range(passes):
        down, right = rng.integers(-distance, distance, (2, len(pixels)))
        # Each step depends on those before it. Plain lists are ten times as fast as arrays for one pixel at a time.
        for pixel, neighbour in zip(pixels.tolist(), (pixels + down * size + right).tolist(), strict=True):
            taken[pixel] = taken[neighbour]
    coarse = np.floor(blurred(x, sigma) * 255) / 255
    return blurred(coarse.reshape(channels, -1)[:, taken].reshape(x.shape), sigma)


def motion_blur(x: Image, kernel: tuple[int, float], rng: np.random.Generator) -> Image:
    """Smear along a line between -45° and 45°; `kernel`: radius and deviation in pixels."""
    return motion_blurred(x, *kernel, rng.uniform(-45, 45))


def zoom_blur(x: Image, zoom: tuple[float, float], _: np.random.Generator) -> Image:
    """Average the image and its centre enlarged 1, 1 + step, … times, up to 1 + end; `zoom`: end and step."""
    end, step = zoom
    factors = np.arange(1, 1 + end, step)
    return (x + sum(zoomed(x, factor) for factor in factors)) / (len(factors) + 1)
