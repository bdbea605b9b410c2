"""Memory for many images that goes back to the system when it is freed, whatever the C library does with its own."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

_LARGE = 1 << 20


def empty_images(shape: Sequence[int]) -> Tensor:
    """Return an uninitialised uint8 tensor; the system gives it memory as it is filled.

    Memory of the C library stays with the process (`compute.runtime.keep_freed_memory`), so that joining shards would
    go on taking the memory of the shards after it freed them.

    Raises:
        RuntimeError: there is not as much memory, as with `torch.empty`.
    """
    size = math.prod(shape)
    if size < _LARGE:
        return torch.empty(*shape, dtype=torch.uint8)
    # Private: a forked process that writes to it changes its own copy alone.
    try:
        mapped = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    except (OSError, OverflowError) as error:
        raise RuntimeError(f"{size} bytes of memory cannot be had: {error}") from error
    return torch.frombuffer(mapped, dtype=torch.uint8).view(*shape)
