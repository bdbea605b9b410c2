from __future__ import annotations

import os
import threading
import time

import pytest

from cudd_core.errors import ConfigError
from cudd_core.runtime import ComputeConfig
from tasks.slots import device_slot, slot_count


def most_at_a_time(tasks: int, compute: ComputeConfig) -> int:
    inside, most, lock = [0], [0], threading.Lock()

    def body() -> None:
        with device_slot(compute):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.05)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=body) for _ in range(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most[0]


@pytest.mark.parametrize("slots", [1, 3])
def test_no_more_bodies_than_slots(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDD_SLOTS", str(slots))
    assert slot_count(ComputeConfig()) == slots
    assert most_at_a_time(6, ComputeConfig()) == slots


def test_a_failing_body_gives_its_slot_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDD_SLOTS", "1")
    for _ in range(3):
        with pytest.raises(KeyError), device_slot(ComputeConfig()):
            raise KeyError
    assert most_at_a_time(2, ComputeConfig()) == 1


def test_cores_are_shared_out_by_threads_per_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDD_SLOTS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert slot_count(ComputeConfig(threads=1)) == cores
    assert slot_count(ComputeConfig(threads=min(2, cores))) == cores // min(2, cores)
    assert slot_count(ComputeConfig(threads=256)) == max(1, cores // 256)


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_bad_number_of_slots_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDD_SLOTS", value)
    with pytest.raises(ConfigError, match="CUDD_SLOTS"):
        slot_count(ComputeConfig())
