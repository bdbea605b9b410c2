"""How many heavy bodies one process lets run at a time: one per GPU, or as many as the cores have threads for."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cudd_core.errors import ConfigError
from cudd_core.runtime import ComputeConfig

_LOCK = threading.Lock()
_SLOTS: dict[tuple[str, int], threading.BoundedSemaphore] = {}


def slot_count(compute: ComputeConfig) -> int:
    """Return the number of tasks that fit on this machine: GPUs, or available cores ÷ threads per task, at least 1.

    `CUDD_SLOTS` overrides it. It is never part of a key: results do not depend on it.
    """
    if override := os.environ.get("CUDD_SLOTS"):
        if not override.isdecimal() or int(override) < 1:
            raise ConfigError(f"CUDD_SLOTS = {override!r} must be a whole number of at least 1, or unset.")
        return int(override)
    if compute.device == "cuda":
        import torch

        return max(1, torch.cuda.device_count())
    # What this process may use, where the system can tell (Linux), rather than what the machine has.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // compute.threads)


@contextmanager
def device_slot(compute: ComputeConfig) -> Iterator[None]:
    """Hold one slot for the body. Taken after the cache lookup, so reused stages never wait."""
    key = (compute.device, slot_count(compute))
    with _LOCK:
        semaphore = _SLOTS.setdefault(key, threading.BoundedSemaphore(key[1]))
    with semaphore:
        yield
