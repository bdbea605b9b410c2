"""How many heavy bodies one process lets run at a time: one per GPU, or as many as the cores have threads for."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cudd_core.errors import ConfigError
from cudd_core.runtime import ComputeConfig

_LOCK = threading.Lock()
_SLOTS: dict[tuple[str, int], queue.SimpleQueue[int]] = {}


def slot_count(compute: ComputeConfig) -> int:
    """Return the number of tasks that fit on this machine: GPUs, or available cores ÷ threads per task, at least 1.

    `CUDD_SLOTS` overrides it. It is never part of a key: results do not depend on it.
    """
    if override := os.environ.get("CUDD_SLOTS"):
        if not override.isdecimal() or int(override) < 1:
            raise ConfigError(f"CUDD_SLOTS = {override!r} must be a whole number of at least 1, or unset.")
        return int(override)
    if compute.device == "cuda":
        return _devices(compute)
    # What this process may use, where the system can tell (Linux), rather than what the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // compute.threads)


@contextmanager
def device_slot(compute: ComputeConfig) -> Iterator[int]:
    """Hold one slot for the body and give the index of its device: with several GPUs, each slot has its own.

    Taken after the cache lookup, so reused stages never wait.
    """
    count = slot_count(compute)
    with _LOCK:
        if (compute.device, count) not in _SLOTS:
            free = queue.SimpleQueue[int]()
            for slot in range(count):
                free.put(slot)
            _SLOTS[compute.device, count] = free
        free = _SLOTS[compute.device, count]
    slot = free.get()
    try:
        yield slot % _devices(compute)
    finally:
        free.put(slot)


def _devices(compute: ComputeConfig) -> int:
    if compute.device != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.device_count())
