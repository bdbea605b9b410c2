"""Many images decoded at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from torch import Tensor

_THREADS = min(4, os.cpu_count() or 1)
_BLOCK = 16  # images a thread takes at a time: tiny ones take less time than handing them over


def decode_many(indices: Sequence[int], decode_one: Callable[[int], Tensor]) -> Iterator[Tensor]:
    """Yield `decode_one` of every index, in order, from a small thread pool (Pillow releases the GIL)."""
    if len(indices) <= _BLOCK:
        yield from map(decode_one, indices)
        return
    blocks = [indices[start : start + _BLOCK] for start in range(0, len(indices), _BLOCK)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="decode") as pool:
        for block in pool.map(lambda block: [decode_one(index) for index in block], blocks):
            yield from block
