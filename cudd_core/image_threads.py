"""Many images decoded or encoded at a time, in a small thread pool: Pillow releases the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

_BLOCK = 16  # images a thread takes at a time: coding a tiny image is faster than handing it over
_TINY = 64 * 64


def for_each_image(images: Tensor, work: Callable[[int], None]) -> None:
    """Call `work` with the number of every image of `images` [n, C, H, W], in no certain order.

    Raises:
        What one of the calls raised.
    """
    count = len(images)

    def block(start: int) -> None:
        for index in range(start, min(start + _BLOCK, count)):
            work(index)

    if count <= _BLOCK:
        block(0)
        return
    # Of a tiny image, much of the time is spent with the GIL: more threads would only wait for each other.
    most = 4 if images[0, 0].numel() <= _TINY else 16
    with ThreadPoolExecutor(min(most, os.cpu_count() or 1), thread_name_prefix="images") as pool:
        for _ in pool.map(block, range(0, count, _BLOCK)):
            pass


def decode_into(images: Tensor, indices: Sequence[int], decode_one: Callable[[int], Tensor]) -> None:
    """Fill `images` [n, C, H, W] with `decode_one(index)` for n indices."""

    def decode(row: int) -> None:
        images[row] = decode_one(indices[row])

    for_each_image(images, decode)
