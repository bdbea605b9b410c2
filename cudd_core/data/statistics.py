"""Mean and standard deviation of a split's channels, and the specification of a network for the split."""

from __future__ import annotations

import numpy as np
import torch

from cudd_core.data.source import ImageSplit
from cudd_core.records import NetworkSpec
from cudd_core.seeding import host_rng

_MOST = 10_000


def spec_for(arch: str, split: ImageSplit, seed: int) -> NetworkSpec:
    """Return the specification of an `arch` trained on `split`, with images normalised by `channel_statistics`."""
    mean, std = channel_statistics(split, seed)
    return NetworkSpec(arch, len(split.class_names), split.channels, split.image_size, mean, std, split.class_names)


def channel_statistics(split: ImageSplit, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel in [0, 1], over at most 10,000 images drawn with `seed`."""
    count = min(_MOST, len(split))
    chosen = np.sort(host_rng(seed, "squeeze", "statistics").permutation(len(split))[:count])
    sums = torch.zeros(2, split.channels, dtype=torch.float64)
    for start in range(0, count, 500):
        pixels = split.images(torch.from_numpy(chosen[start : start + 500])).double() / 255
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
    mean, square = sums / (count * split.image_size**2)
    std = (square - mean.square()).clamp_min(1e-6).sqrt()
    return tuple(round(v, 4) for v in mean.tolist()), tuple(round(v, 4) for v in std.tolist())
