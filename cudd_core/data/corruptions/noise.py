"""Noise: Gaussian, shot, impulse and speckle."""

from __future__ import annotations

import numpy as np

from cudd_core.data.corruptions.fields import Image


def gaussian_noise(x: Image, deviation: float, rng: np.random.Generator) -> Image:
    """x + N(0, deviation²), independently for each value."""
    return x + rng.normal(scale=deviation, size=x.shape)


def shot_noise(x: Image, photons: float, rng: np.random.Generator) -> Image:
    """Poisson(x · photons) / photons; `photons`: mean number that a white pixel collects."""
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Image, share: float, rng: np.random.Generator) -> Image:
    """Set a `share` of the values to 0 or 1, with equal probability."""
    hit = rng.random(x.shape) < share
    return np.where(hit, rng.random(x.shape) < 0.5, x)


def speckle_noise(x: Image, deviation: float, rng: np.random.Generator) -> Image:
    """x + x · N(0, deviation²)."""
    return x + x * rng.normal(scale=deviation, size=x.shape)
