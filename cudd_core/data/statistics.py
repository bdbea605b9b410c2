"""Mean and standard deviation of a split's channels."""

from __future__ import annotations

import numpy as np
import torch

from cudd_core.data.source import ImageSplit
from cudd_core.seeding import host_rng


def channel_statistics(split: ImageSplit, seed: int, most: int = 10_000) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel in [0, 1], over at most `most` images drawn from `seed`."""
    count = min(most, len(split))
    chosen = np.sort(host_rng(seed, "squeeze", "statistics").permutation(len(split))[:count])
    sums = torch.zeros(2, split.channels, dtype=torch.float64)
    for start in range(0, count, 500):
        pixels = split.images(torch.from_numpy(chosen[start : start + 500])).double() / 255
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
    mean, square = sums / (count * split.image_size**2)
    std = (square - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())
