"""Parallel decoding of many images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

_THREADS = min(4, os.cpu_count() or 1)
_BLOCK = 16  # images a thread takes at a time: decoding a tiny image is faster than handing it over


def decode_into(images: Tensor, indices: Sequence[int], decode_one: Callable[[int], Tensor]) -> None:
    """Fill `images` [n, …] with `decode_one(index)` for n indices, in a small thread pool (Pillow releases the GIL)."""

    def decode_block(start: int) -> None:
        for row in range(start, min(start + _BLOCK, len(indices))):
            images[row] = decode_one(indices[row])

    if len(indices) <= _BLOCK:
        decode_block(0)
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
        for _ in pool.map(decode_block, range(0, len(indices), _BLOCK)):
            pass
