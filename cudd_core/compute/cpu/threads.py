"""Dividing images among torch's threads, for work outside torch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch

T = TypeVar("T")


def in_parts(some: Callable[[int, int], T], n: int) -> list[T]:
    """Call `some(start, stop)` for consecutive parts of n images, one part per torch thread; return results in order.

    Raises:
        Whatever `some` raises.
    """
    each = -(-n // torch.get_num_threads())
    parts = [(start, min(start + each, n)) for start in range(0, n, each)]
    if len(parts) == 1:
        return [some(0, n)]
    if (parallel := torch_s_threads()) is None:
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(lambda part: some(*part), parts))
    left, made, errors = iter(parts), dict[int, T](), list[BaseException]()

    def take(_: int | None) -> None:  # runs in every thread; there may be fewer than parts
        try:
            for start, stop in left:
                made[start] = some(start, stop)
        except BaseException as error:  # even an interrupt: no exception may leave the region
            errors.append(error)

    parallel(_Region(take), None, len(parts), 0)
    for error in errors:
        raise error
    return [made[start] for start, _ in parts]


_Region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def torch_s_threads() -> Callable[..., None] | None:
    """Return GOMP_parallel(region, argument, threads, 0) of torch's OpenMP, None if torch uses another OpenMP.

    OpenMP's threads spin for a while after every torch operation, so threads of our own would find the cores busy.
    """
    for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        with contextlib.suppress(OSError, AttributeError):
            parallel: Callable[..., None] = ctypes.CDLL(str(path)).GOMP_parallel
            return parallel
    return None
