"""Weather: snow, frost, fog and spatter."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from cudd_core.data.corruptions.fields import Image, blurred, motion_blurred, plasma, zoomed

_LUMA = np.array([0.299, 0.587, 0.114])
_WATER, _MUD = np.array([175, 238, 238]) / 255, np.array([63, 42, 20]) / 255
_ICE = np.array([0.88, 1.02, 1.10])
"""Colour of frost, relative to its brightness."""


def snow(x: Image, flakes: tuple[float, float, float, float, int, float, float], rng: np.random.Generator) -> Image:
    """Add flakes of noise, smeared downwards, to a paler image.

    `flakes`: mean and deviation of the noise, its enlargement, the value from which it counts as a flake, radius and
    deviation of the motion blur, and how much of the image's own colour is left.
    """
    mean, deviation, factor, threshold, radius, sigma, kept = flakes
    layer = zoomed(rng.normal(mean, deviation, x.shape[1:]), factor)
    layer = np.clip(np.where(layer < threshold, 0, layer), 0, 1)
    layer = motion_blurred(layer, radius, sigma, rng.uniform(-135, -45))
    pale = np.maximum(x, _grey(x) * 1.5 + 0.5)
    return kept * x + (1 - kept) * pale + layer + np.rot90(layer, 2)


def frost(x: Image, mix: tuple[float, float], rng: np.random.Generator) -> Image:
    """a · image + b · frost; `mix`: a and b.

    The published sets overlay photographs of frozen windows. Here the frost is generated: crystals along the ridges of
    fractal fields, with the mean brightness (about 0.55), the spread (0.14) and the blue of those photographs.
    """
    image, ice = mix
    size = x.shape[1]
    coarse, fine = (1 - np.abs(2 * plasma(size, decay, rng) - 1) for decay in (1.6, 1.2))
    ridges = 0.6 * coarse + 0.4 * fine
    ridges = (ridges - ridges.mean()) / max(ridges.std(), 1e-6)
    field = np.clip(0.55 + 0.14 * ridges, 0, 1)
    return image * x + ice * np.clip(_painted(field, _ICE, x), 0, 1)


def fog(x: Image, bank: tuple[float, float], rng: np.random.Generator) -> Image:
    """Add a fractal field and scale back to the image's own range; `bank`: thickness, and decay of the field."""
    thickness, decay = bank
    brightest = x.max()
    result: Image = (x + thickness * plasma(x.shape[1], decay, rng)) * brightest / (brightest + thickness)
    return result


def spatter(x: Image, drops: tuple[float, float, float, float, float, str], rng: np.random.Generator) -> Image:
    """Add drops of water, which shine near their edges, or of mud, which hide what is behind them.

    `drops`: mean and deviation of noise, sigma of its blur, the value from which it counts as a drop, strength of the
    shine (water) or sigma of the drops' own blur (mud), and which of the two. Where the published code finds the edges
    of drops with Canny's detector, this uses the drops' outlines.
    """
    mean, deviation, sigma, threshold, last, liquid = drops
    layer = blurred(rng.normal(mean, deviation, x.shape[1:]), sigma)
    drop = layer >= threshold
    if liquid == "mud":
        cover = blurred(drop.astype(float), last)
        cover[cover < 0.8] = 0
        return x * (1 - cover) + _painted(cover, _MUD, x)
    outline = drop & ~ndimage.binary_erosion(drop, border_value=1)
    if not outline.any():
        return x
    depth = np.minimum(ndimage.distance_transform_edt(~outline), 20)
    depth = _equalised(np.floor(ndimage.uniform_filter(depth, 3, mode="mirror")))
    # Lit from the top left: a slope along the diagonal becomes light and shade.
    lit = ndimage.correlate(depth, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    shine = np.where(drop, layer, 0) * ndimage.uniform_filter(np.clip(lit, 0, 255), 3, mode="mirror")
    if shine.max() <= 0:
        return x
    return x + _painted(last * shine / shine.max(), _WATER, x)


def _grey(x: Image) -> Image:
    return x if len(x) == 1 else np.tensordot(_LUMA, x, axes=1)[None]


def _painted(field: Image, colour: Image, x: Image) -> Image:
    """Return the field [H, W] in a colour, or in the colour's brightness if the image is greyscale."""
    return field * (colour if len(x) == 3 else np.array([_LUMA @ colour]))[:, None, None]


def _equalised(depth: Image) -> Image:
    """Equalise the histogram: spread whole values over 0 … 255, each over a range like its share of the pixels."""
    values, inverse, counts = np.unique(depth, return_inverse=True, return_counts=True)
    if len(values) == 1:
        return depth
    below = counts.cumsum() - counts[0]
    spread: Image = np.round(255 * below / below[-1])[inverse].reshape(depth.shape)
    return spread
