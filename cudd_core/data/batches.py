"""Shuffled, augmented batches of a whole split, for training on T."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cudd_core.compute.runtime import Runtime
from cudd_core.compute.transfer import upload
from cudd_core.data.augment import Warp, padded_crop_warp, resized_crop_warp
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.seeding import host_rng

Crop = Literal["pad", "resized", "none"]
"""Pad with the mean colour by image_size/8 and crop, random resized crop, or none."""


class AugmentedBatches:
    """Epochs of a split, each drawn from its own random stream; a smaller last batch is dropped, as usual.

    `stream`: the beginning of the seed's path, before the number of the epoch.
    """

    def __init__(
        self,
        split: ImageSplit,
        normalizer: Normalizer,
        batch_size: int,
        crop: Crop,
        flip: bool,
        seed: int,
        stream: tuple[str | int, ...],
        runtime: Runtime,
    ) -> None:
        self.split, self.normalizer, self.runtime = split, normalizer, runtime
        self.crop, self.flip, self.seed, self.stream = crop, flip, seed, stream
        self.batch_size = min(batch_size, len(split))
        self.steps_per_epoch = len(split) // self.batch_size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images [n, C, H, W] float, normalised, channels last; labels int64 [n]), both on the device."""
        rng = host_rng(self.seed, *self.stream, "epoch", number)
        order = torch.from_numpy(rng.permutation(len(self.split)))
        for step in range(self.steps_per_epoch):
            indices = order[step * self.batch_size : (step + 1) * self.batch_size]
            pixels = self.runtime.images(self.normalizer(self.split.images(indices)))
            warp = training_warp(len(indices), self.split.image_size, self.crop, self.flip, rng, pixels.device)
            images = warp(pixels).contiguous(memory_format=torch.channels_last)
            yield images, upload(self.split.labels[indices], self.runtime.device)


def training_warp(
    n: int, size: int, crop: Crop, flip: bool, rng: np.random.Generator, device: torch.device | str = "cpu"
) -> Warp:
    """Draw the augmentation of n training images, on `device`."""
    if crop == "resized":
        return resized_crop_warp(n, size, (0.08, 1.0), flip, rng, device=device)
    return padded_crop_warp(n, size, size // 8 if crop == "pad" else 0, flip, rng, device)
