"""Decoded images on disk: each is decoded once, then read through a memory map by any process that needs it.

    FOLDER/KEY/pixels.bin   uint8 [N, C, H, W], sparse until it is filled
    FOLDER/KEY/index.bin    a digest of each image's pixels, 16 bytes [N]; zeros: not there yet
    FOLDER/KEY/about.json   a description for people

An image is valid only with its digest, which is written after it and checked when a process first reads the image. So
any number of processes may read and fill one folder without locks, a kill or a crash loses only the images being
written, and a damaged image is decoded again. The digest covers the modification time of an image's own file, so
overwriting that in place is noticed too. The cache yields to other files: it stops growing when little disk space is
free.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import features
from torch import Tensor

from cudd_core import NUMERICS_VERSION
from cudd_core.data.source import DataConfig
from cudd_core.image_threads import for_each_image

_DIGEST = 16
_CHECK_BYTES = 64 << 20
"""Bytes written between two checks of the free space."""
_TINY_BYTES = 3 * 64 * 64
"""Images up to this size are read all at once: handing each to a thread would take longer than copying it."""
_due = (-1, 0)
"""A device, and how many bytes this process has yet to write to it besides decoded images."""
_log = logging.getLogger("cudd.decoded")


def reserve(total: int) -> int:
    """Return how many bytes to leave free on a disk of `total` bytes: a tenth of it, at most 100 GB."""
    return min(total // 10, 100 * 10**9)


def leave_room(folder: Path, size: int) -> None:
    """From now on, leave `size` bytes more on the disk of `folder`, which this process has yet to fill with outputs.

    Decoding comes first, outputs come for days: without this, the images would take what was found free for those.
    """
    global _due
    _due = folder.stat().st_dev, size


def cache_key(digest: str, count: int, config: DataConfig) -> str:
    """Return the name of a split's folder: sha256 hex over everything that its pixels depend on.

    Besides the split's digest and how it is decoded, these are the versions of Pillow and of its JPEG library, since
    other versions may decode differently.
    """
    decoding = config.model_dump(include={"channels", "image_size", "greyscale", "colour", "white"})
    identity = [NUMERICS_VERSION, digest, count, decoding, PIL.__version__, features.version("jpg")]
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


class DecodedCache:
    """The decoded images of one split, in `folder`/KEY. Safe to share between threads and processes.

    `stamp(i)`: the modification time of image i's file in nanoseconds, or 0.

    Raises:
        OSError: the folder cannot be created or written.
    """

    def __init__(self, folder: Path, digest: str, count: int, config: DataConfig, stamp: Callable[[int], int]) -> None:
        self.folder = folder / cache_key(digest, count, config)
        self.folder.mkdir(parents=True, exist_ok=True)
        shape = (count, config.channels, config.image_size, config.image_size)
        self._image_bytes = int(np.prod(shape[1:]))
        self._stamp = stamp
        self._trusted = np.zeros(count, dtype=np.bool_)
        self._pixels_file, self._pixels = _open(self.folder / "pixels.bin", shape)
        weakref.finalize(self, os.close, self._pixels_file)
        self._index_file, self._index = _open(self.folder / "index.bin", (count, _DIGEST))
        weakref.finalize(self, os.close, self._index_file)
        self._written = _CHECK_BYTES
        self.grows = True
        _describe(self.folder, {"images": count, "pixels": list(shape), "split": digest, **config.model_dump()})
        os.utime(self.folder)  # the time of last use, for `cudd gc`

    def read(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return pixels at `indices` (int64 [n]) as a new uint8 [n, C, H, W], and which are valid, bool [n]."""
        places = indices.numpy()
        pixels = np.empty((len(places), *self._pixels.shape[1:]), dtype=np.uint8)
        trusted = self._trusted[places]
        known: NDArray[np.bool_] = trusted | self._index[places].any(axis=1)
        tiny = self._image_bytes <= _TINY_BYTES
        if tiny:
            pixels[trusted] = self._pixels[places[trusted]]

        def load(row: int) -> None:
            if not known[row] or (tiny and trusted[row]):
                return
            place = int(places[row])
            pixels[row] = self._pixels[place]
            if not trusted[row]:
                known[row] = _digest(self._stamp(place), pixels[row].data) == self._index[place].tobytes()

        if not (tiny and trusted[known].all()):
            for_each_image(torch.from_numpy(pixels), load)
        self._trusted[places[known]] = True
        return torch.from_numpy(pixels), torch.from_numpy(known)

    def missing(self, indices: Tensor) -> Tensor:
        """Return those of `indices` (int64 [n]) that are not cached, without checking the digests of the others."""
        return indices[torch.from_numpy(~self._index[indices.numpy()].any(axis=1))]

    def stamps(self, indices: Tensor) -> list[int]:
        """Return when the files of `indices` (int64 [n]) were modified. Call this before reading them."""
        return [self._stamp(place) for place in indices.tolist()]

    def write(self, indices: Tensor, pixels: Tensor, stamps: Sequence[int]) -> None:
        """Keep `pixels` (uint8 [n, C, H, W]) of `indices` if there is room; otherwise stop growing.

        `stamps`: from before the files were read, so that an image overwritten meanwhile is decoded again.
        """
        if not self.grows or not self._has_room(len(indices) * self._image_bytes):
            return
        try:
            for place, image, stamp in zip(indices.tolist(), pixels.numpy(), stamps, strict=True):
                data = image.tobytes()
                _put(self._pixels_file, data, place * self._image_bytes)
                _put(self._index_file, _digest(stamp, data), place * _DIGEST)
                self._trusted[place] = True
        except OSError as error:
            self._stop(error.strerror or str(error))

    def _has_room(self, more: int) -> bool:
        self._written += more
        if self._written >= _CHECK_BYTES:
            self._written = 0
            disk, (device, size) = shutil.disk_usage(self.folder), _due
            left = reserve(disk.total) + (size if self.folder.stat().st_dev == device else 0)
            if disk.free - more < left:
                self._stop(f"{disk.free / 1e9:.1f} GB are free, {left / 1e9:.1f} GB stay free")
        return self.grows

    def _stop(self, reason: str) -> None:
        if self.grows:
            self.grows = False
            _log.warning(
                "decoded images are no longer kept in %s (%s); others are decoded at every use",
                self.folder,
                reason,
            )


def open_cache(
    folder: Path, digest: str, count: int, config: DataConfig, stamp: Callable[[int], int]
) -> DecodedCache | None:
    """Return the cache, or None, with a warning in the log, if the folder cannot be used."""
    try:
        return DecodedCache(folder, digest, count, config, stamp)
    except OSError as error:
        _log.warning("decoded images are not kept: %s cannot be used (%s)", folder, error.strerror or error)
        return None


def _open(path: Path, shape: tuple[int, ...]) -> tuple[int, NDArray[np.uint8]]:
    """Open or create a sparse file of this shape; return its descriptor and a read-only memory map of it."""
    size = int(np.prod(shape))
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if os.fstat(file).st_size != size:
            os.ftruncate(file, size)
        return file, np.memmap(path, dtype=np.uint8, mode="r", shape=shape)
    except OSError:
        os.close(file)
        raise


def _digest(stamp: int, data: bytes | memoryview) -> bytes:
    # All zeros, which would mean "not there", never occurs in practice; the image would just be decoded again.
    key = stamp.to_bytes(8, "big", signed=True)  # before 1970 it is negative
    return hashlib.blake2b(data, digest_size=_DIGEST, key=key).digest()


def _put(file: int, data: bytes, offset: int) -> None:
    # Not through the map: a full disk would then kill the process instead of raising an error.
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


def _describe(folder: Path, about: dict[str, Any]) -> None:
    partial = folder / f".about.{os.getpid()}.{id(about)}"
    partial.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / "about.json")
