"""A split of encoded image files, decoded when asked for and kept if it all fits."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cudd_core.data.pixels import decode, decode_many
from cudd_core.data.source import DataConfig

MEMORY_LIMIT = 2 << 30
"""Splits whose decoded bytes are fewer than this stay in memory once decoded."""

_PART = 4096  # images decoded between two writes to memory, which bounds the second copy


class EncodedSplit(ABC):
    """N encoded images; see `cudd_core.data.source.ImageSplit`.

    Each image is decoded the first time it is asked for. A split under `MEMORY_LIMIT` keeps what it decoded, so later
    epochs only copy; a larger one decodes again. Safe to share between threads.
    """

    def __init__(self, labels: Tensor, class_names: tuple[str, ...], config: DataConfig, digest: str) -> None:
        channels, image_size = config.channels, config.image_size
        self.labels = labels
        self.class_names = class_names
        self.channels = channels
        self.image_size = image_size
        self.convert_grey = config.greyscale == "convert"
        self.digest = digest
        self._lock = threading.Lock()
        self._kept: Tensor | None = None
        self._is_kept = torch.zeros(len(labels), dtype=torch.bool)
        if len(labels) * channels * image_size**2 < MEMORY_LIMIT:
            self._kept = torch.empty(len(labels), channels, image_size, image_size, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def _read(self, index: int) -> tuple[str, bytes]:
        """Return what to call the image in messages, and its encoded bytes. Called from several threads."""

    def encoded(self, index: int) -> tuple[str, bytes]:
        """Return what to call the image in messages, and its file's bytes. Raises DataError for one unreadable."""
        return self._read(index)

    def images(self, indices: Tensor) -> Tensor:
        """Return images at `indices` (int64 [n]) as a new uint8 [n, C, H, W].

        Raises:
            DataError: an image that cannot be read, or with the wrong number of channels; names it.
        """
        # Ascending order: a container with row groups is then read once, front to back.
        wanted, inverse = torch.unique(indices, return_inverse=True)
        if self._kept is None:
            return self._decode(wanted)[inverse]
        with self._lock:
            missing = wanted[~self._is_kept[wanted]]
        for part in missing.split(_PART):
            decoded = self._decode(part)  # outside the lock; two threads may decode the same image to the same bytes
            with self._lock:
                self._kept[part] = decoded
                self._is_kept[part] = True
        return self._kept[indices]

    def _decode(self, indices: Tensor) -> Tensor:
        decoded = torch.empty(len(indices), self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        for row, pixels in enumerate(decode_many(indices.tolist(), self._decode_one)):
            decoded[row] = pixels
        return decoded

    def _decode_one(self, index: int) -> Tensor:
        name, data = self._read(index)
        return decode(data, name, self.channels, self.image_size, convert_grey=self.convert_grey)
