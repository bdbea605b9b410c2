"""How many heavy stages one process runs at a time: some per GPU, or as many as the cores allow with their threads.

A training by several processes takes a slot for each of them.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from cudd_core.compute.lanes import LANES, lane
from cudd_core.compute.runtime import ComputeConfig
from cudd_core.errors import ConfigError, ResourceError
from tasks.machine import core_count

_LOCK = threading.Lock()
_SLOTS: dict[tuple[str, int], _Slots] = {}


def slot_count(compute: ComputeConfig) -> int:
    """Return how many tasks this machine computes at a time: GPUs × lanes, or available cores ÷ threads, at least 1.

    `CUDD_SLOTS` overrides it. It is never part of a key: results do not depend on it.

    Raises:
        ConfigError: `CUDD_SLOTS` is no such number, or more than there are lanes on this machine's GPUs.
    """
    if override := _whole_number("CUDD_SLOTS", 1):
        if compute.device == "cuda" and override > (most := LANES * _devices(compute)):
            raise ConfigError(f"CUDD_SLOTS = {override}: this machine's GPUs have room for {most} tasks at a time.")
        return override
    if compute.device == "cuda":
        return _devices(compute) * compute.lanes
    return max(1, core_count() // compute.threads)


def tasks_in_flight() -> int:
    """Return how many tasks of a run may look up, download, or wait for a device at a time: `CUDD_TASKS`, or 16.

    On a Ray cluster, this limits how many devices one run keeps busy.
    """
    return _whole_number("CUDD_TASKS", 2) or 16


def _whole_number(name: str, least: int) -> int | None:
    value = os.environ.get(name)
    if not value:
        return None
    if not value.isdecimal() or int(value) < least:
        raise ConfigError(f"{name} = {value!r} must be a whole number of at least {least}, or unset.")
    return int(value)


def most_processes(compute: ComputeConfig) -> int:
    """Return how many processes a training can have here: at most the slots and, on CUDA, the GPUs (one for each)."""
    slots = slot_count(compute)
    return min(slots, _devices(compute)) if compute.device == "cuda" else slots


@contextmanager
def device_slots(compute: ComputeConfig, count: int = 1, patient: bool = False) -> Iterator[tuple[int, ...]]:
    """Hold `count` slots during the body and yield the indices of their devices; on CUDA, all are different.

    `patient`: wait while anyone who is not patient waits. Slots are taken after the cache lookup, so reused stages
    never wait. They are spread over all GPUs; slots that share a GPU each have a lane of it.

    Raises:
        ResourceError: `count` is more than this machine has room for.
    """
    if count > (most := most_processes(compute)):
        raise ResourceError(f"compute.data_parallel = {count}: this machine has room for {most} such processes.")
    slots = slot_count(compute)
    with _LOCK:
        if (compute.device, slots) not in _SLOTS:
            _SLOTS[compute.device, slots] = _Slots(slots, _devices(compute) if compute.device == "cuda" else slots)
        held = _SLOTS[compute.device, slots]
    taken = held.take(count, patient)
    devices = _devices(compute)
    shared = compute.device == "cuda" and slots > devices and count == 1
    try:
        with lane(taken[0] // devices, taken[0] % devices) if shared else nullcontext():
            yield tuple(slot % devices for slot in taken)
    finally:
        held.give_back(taken)


class _Slots:
    """Slots, of which a caller can take several at once. Callers are served in order, patient ones after all others.

    Nobody waits while holding slots, so callers cannot wait for each other. Nobody is overtaken by a caller of the same
    kind, so one that needs many slots gets them. `places`: slots that are equal modulo `places` are on one device.
    """

    def __init__(self, count: int, places: int) -> None:
        self._free, self._places = list(range(count)), places
        # Two queues: first the impatient callers, then the patient ones.
        self._waiting: tuple[deque[object], deque[object]] = (deque(), deque())
        self._changed = threading.Condition()

    def take(self, count: int, patient: bool) -> tuple[int, ...]:
        """Wait for `count` slots in different places and take them."""
        me = object()
        with self._changed:
            self._waiting[patient].append(me)
            try:
                self._changed.wait_for(lambda: self._next() is me and len(self._apart()) >= count)
                taken = self._apart()[:count]
                self._free = [slot for slot in self._free if slot not in taken]
            finally:
                self._waiting[patient].remove(me)
                self._changed.notify_all()
        return tuple(taken)

    def give_back(self, slots: tuple[int, ...]) -> None:
        """Free slots."""
        with self._changed:
            self._free += slots
            self._changed.notify_all()

    def _next(self) -> object:
        """Return the caller whose turn it is."""
        return next(waiting[0] for waiting in self._waiting if waiting)

    def _apart(self) -> list[int]:
        """Return the first free slot of each place."""
        return list({slot % self._places: slot for slot in reversed(self._free)}.values())[::-1]


def _devices(compute: ComputeConfig) -> int:
    if compute.device != "cuda":
        return 1
    return max(1, torch.cuda.device_count())
