"""A split seen through a corruption, which is computed whenever images are read."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from cudd_core.data.corruptions import VERSION, corrupt
from cudd_core.data.source import ImageSplit


class CorruptedSplit:
    """A view of `clean` with one corruption at one severity.

    Nothing is kept: computing images again costs less than keeping 19 × 5 copies of a test set.
    """

    def __init__(self, clean: ImageSplit, corruption: str, severity: int, seed: int) -> None:
        self._clean = clean
        self._corruption, self._severity, self._seed = corruption, severity, seed
        self.labels = clean.labels
        self.class_names = clean.class_names
        self.channels = clean.channels
        self.image_size = clean.image_size
        words = f"{clean.digest} {corruption} severity={severity} seed={seed} version={VERSION}"
        self.digest = hashlib.sha256(words.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Return corrupted images at `indices` (int64 [n]) as uint8 [n, C, H, W]."""
        clean = self._clean.images(indices).numpy()
        made = [
            corrupt(image, self._corruption, self._severity, self._seed, index)
            for image, index in zip(clean, indices.tolist(), strict=True)
        ]
        return torch.from_numpy(np.stack(made)) if made else torch.empty(clean.shape, dtype=torch.uint8)
