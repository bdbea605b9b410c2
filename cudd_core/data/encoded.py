"""A split of encoded image files, decoded on demand and then kept: in a folder, else in memory if all of it fits."""

from __future__ import annotations

import os
import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cudd_core.data.decoded import DecodedCache, open_cache
from cudd_core.data.pixels import decode
from cudd_core.data.source import DataConfig
from cudd_core.image_threads import decode_into
from cudd_core.progress import Progress, silent

MEMORY_LIMIT = 2 << 30
"""Splits with fewer decoded bytes than this stay in memory once decoded, if no folder keeps them."""

_PART = 32 << 20
"""Decoded bytes between two writes; this bounds the size of the second copy in memory."""


class EncodedSplit(ABC):
    """N encoded images; see `cudd_core.data.source.ImageSplit`.

    Each image is decoded the first time it is read. After `keep_decoded`, decoded images are kept in a folder, also for
    other processes and later runs. Without it, or when the disk is full, a split under `MEMORY_LIMIT` keeps them in
    memory; a larger one decodes them again. Safe to share between threads.
    """

    def __init__(self, labels: Tensor, class_names: tuple[str, ...], config: DataConfig, digest: str) -> None:
        self.labels = labels
        self.class_names = class_names
        self.channels = config.channels
        self.image_size = config.image_size
        self.digest = digest
        self._config = config
        self._lock = threading.Lock()
        self._cache: DecodedCache | None = None
        self._asked: set[Path] = set()
        self._kept: Tensor | None = None
        self._is_kept = torch.zeros(len(labels), dtype=torch.bool)
        self._part = max(1, _PART // (config.channels * config.image_size**2))
        if len(labels) * config.channels * config.image_size**2 < MEMORY_LIMIT:
            self._kept = self._empty(len(labels))  # takes memory only where it is written

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def encoded(self, index: int) -> tuple[str, bytes]:
        """Return the image's name for messages, and its encoded bytes. Called from several threads.

        Raises:
            DataError: the image cannot be read.
        """

    def _changed(self, index: int) -> int:
        """Return when this image's own file was modified, in nanoseconds; 0 if it has no file of its own."""
        return 0

    def keep_decoded(self, folder: Path) -> None:
        """Keep decoded images under `folder` from now on. Further calls with the same folder have no effect."""
        with self._lock:
            if folder not in self._asked:
                self._asked.add(folder)
                self._cache = open_cache(folder, self.digest, len(self), self._config, self._changed) or self._cache

    def decode_ahead(self, indices: Tensor, progress: Progress = silent) -> None:
        """Decode those of `indices` (int64 [n]) that the folder of `keep_decoded` lacks, if there is one, part by part.

        Call this before reading a container of many images in another order than its own. Several processes share the
        work: each takes the parts in its own order, and skips what others have done meanwhile.
        """
        cache = self._cache
        if cache is None:
            return
        parts = list(self._parts(cache.missing(torch.unique(indices))))
        total, done = sum(map(len, parts)), 0
        # This is only the order of the work; no result depends on it.
        random.Random(f"{os.getpid()} {threading.get_ident()}").shuffle(parts)
        for part in parts:
            if not cache.grows:
                return
            lacking = cache.missing(part)
            if len(lacking):
                stamps = cache.stamps(lacking)
                cache.write(lacking, self._decode(lacking), stamps)
            done += len(part)
            progress(done, total, {})

    def try_images(self, indices: Tensor) -> None:
        """Decode images at `indices` (int64 [n]), without holding all at once, just to raise the errors of `images`."""
        for part in self._parts(indices):
            self.images(part)

    def images(self, indices: Tensor) -> Tensor:
        """Return images at `indices` (int64 [n]) as a new uint8 [n, C, H, W].

        Raises:
            DataError: an image cannot be read or has the wrong number of channels; names it.
        """
        # In ascending order, so that a container with row groups is read once, front to back.
        wanted, inverse = torch.unique(indices, return_inverse=True)
        if self._cache is None:
            return self._uncached(wanted)[inverse]
        pixels, known = self._cache.read(wanted)
        for rows in self._parts((~known).nonzero().flatten()):
            if not self._cache.grows:
                pixels[rows] = self._uncached(wanted[rows])
                continue
            stamps = self._cache.stamps(wanted[rows])
            pixels[rows] = decoded = self._decode(wanted[rows])
            self._cache.write(wanted[rows], decoded, stamps)
        return pixels[inverse]

    def _uncached(self, wanted: Tensor) -> Tensor:
        """Return images at `wanted`, in ascending order, from memory or by decoding them."""
        if self._kept is None:
            return self._decode(wanted)
        with self._lock:
            missing = wanted[~self._is_kept[wanted]]
        for part in self._parts(missing):
            decoded = self._decode(part)  # outside the lock; two threads may decode the same image to the same bytes
            with self._lock:
                self._kept[part] = decoded
                self._is_kept[part] = True
        return self._kept[wanted]

    def _decode(self, indices: Tensor) -> Tensor:
        decoded = self._empty(len(indices))
        decode_into(decoded, indices.tolist(), self._decode_one)
        return decoded

    def _decode_one(self, index: int) -> Tensor:
        name, data = self.encoded(index)
        return decode(data, name, self._config.decoding)

    def _parts(self, indices: Tensor) -> Iterator[Tensor]:
        return (indices[start : start + self._part] for start in range(0, len(indices), self._part))

    def _empty(self, count: int) -> Tensor:
        return torch.empty(count, self.channels, self.image_size, self.image_size, dtype=torch.uint8)
