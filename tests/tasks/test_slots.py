from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch

from cudd_core.compute.lanes import LANES
from cudd_core.compute.runtime import ComputeConfig
from cudd_core.errors import ConfigError, ResourceError
from tasks.slots import _SLOTS, device_slots, most_processes, slot_count, tasks_in_flight


def until_so_many_wait(number: int) -> None:
    """Return once that many threads stand in the line for slots."""
    deadline = time.monotonic() + 60
    while sum(len(line) for slots in _SLOTS.values() for line in slots._waiting) < number:
        assert time.monotonic() < deadline, "nobody came"
        time.sleep(0.001)


def most_at_a_time(tasks: int, compute: ComputeConfig) -> int:
    inside, most, lock = [0], [0], threading.Lock()
    all_in = threading.Barrier(slot_count(compute), timeout=60)

    def body() -> None:
        with device_slots(compute):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            all_in.wait()
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
        with pytest.raises(KeyError), device_slots(ComputeConfig()):
            raise KeyError
    assert most_at_a_time(2, ComputeConfig()) == 1


def test_cores_are_shared_out_by_threads_per_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDD_SLOTS", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert slot_count(ComputeConfig(threads=1)) == cores
    assert slot_count(ComputeConfig(threads=min(2, cores))) == cores // min(2, cores)
    assert slot_count(ComputeConfig(threads=256)) == max(1, cores // 256)


def test_a_gpu_has_a_lane_for_every_slot_or_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for value in (2 * LANES, 2 * LANES + 1):
        monkeypatch.setenv("CUDD_SLOTS", str(value))
        assert slot_count(ComputeConfig()) == value
        if value == 2 * LANES:
            assert slot_count(ComputeConfig(device="cuda")) == value
    with pytest.raises(ConfigError, match=f"CUDD_SLOTS = {2 * LANES + 1}.*room for {2 * LANES} tasks"):
        slot_count(ComputeConfig(device="cuda"))


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_bad_number_of_slots_or_tasks_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CUDD_SLOTS", value)
    with pytest.raises(ConfigError, match="CUDD_SLOTS"):
        slot_count(ComputeConfig())
    monkeypatch.setenv("CUDD_TASKS", value)
    with pytest.raises(ConfigError, match="CUDD_TASKS"):
        tasks_in_flight()


def test_tasks_in_flight_leave_room_for_both_branches_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("", 16), ("2", 2), ("300", 300)):
        monkeypatch.setenv("CUDD_TASKS", value)
        assert tasks_in_flight() == expected
    monkeypatch.setenv("CUDD_TASKS", "1")
    with pytest.raises(ConfigError, match="at least 2"):
        tasks_in_flight()


def test_those_who_take_many_take_them_at_once_and_are_not_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that took one slot after the other would wait for each other for ever; small ones would keep big ones out."""
    monkeypatch.setenv("CUDD_SLOTS", "3")
    order: list[int] = []

    def body(count: int) -> None:
        with device_slots(ComputeConfig(), count) as devices:
            assert devices == (0,) * count
            order.append(count)

    threads = []
    with device_slots(ComputeConfig()):
        for count in (3, 1, 2, 3, 1):
            threads.append(threading.Thread(target=body, args=(count,)))
            threads[-1].start()
            until_so_many_wait(len(threads))
        assert order == [], "the first in the line needs all, and one is taken"
    for thread in threads:
        thread.join(30)
    assert order[0] == 3 and sorted(order) == [1, 1, 2, 3, 3] and not any(thread.is_alive() for thread in threads)


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Three GPUs for six slots; the lanes (number, GPU) that were taken."""
    taken: list[tuple[int, int]] = []

    @contextmanager
    def lane(number: int, device: int) -> Iterator[None]:
        taken.append((number, device))
        yield

    monkeypatch.setenv("CUDD_SLOTS", "6")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("tasks.slots.lane", lane)
    return taken


def test_slots_that_share_a_gpu_have_lanes_of_their_own(lanes: list[tuple[int, int]]) -> None:
    with ExitStack() as stack:
        devices = [stack.enter_context(device_slots(ComputeConfig(device="cuda")))[0] for _ in range(6)]
    assert sorted(devices) == [0, 0, 1, 1, 2, 2]
    assert [device for _, device in lanes] == devices and len(set(lanes)) == 6


def test_lanes_are_slots(lanes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDD_SLOTS")
    compute = ComputeConfig(device="cuda", lanes=3)
    assert slot_count(compute) == 9 and slot_count(ComputeConfig(lanes=3)) == slot_count(ComputeConfig())
    with ExitStack() as stack:
        for _ in range(9):
            stack.enter_context(device_slots(compute))
    assert sorted(lanes) == [(lane, device) for lane in range(3) for device in range(3)]


def test_slots_that_share_none_have_no_lanes(lanes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    with device_slots(ComputeConfig()):
        pass
    monkeypatch.setenv("CUDD_SLOTS", "3")
    with device_slots(ComputeConfig(device="cuda")):
        pass
    assert lanes == []


def test_processes_of_a_training_have_gpus_of_their_own(lanes: list[tuple[int, int]]) -> None:
    compute = ComputeConfig(device="cuda")
    with device_slots(compute, 2) as first, device_slots(compute, 3) as second, device_slots(compute) as third:
        assert len(set(first)) == 2 and set(second) == {0, 1, 2} and set(third) == {0, 1, 2} - set(first)
    assert [device for _, device in lanes] == list(third), "processes have no use for this one's lanes"


def test_more_than_there_will_ever_be_is_no_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDD_SLOTS", "2")
    with pytest.raises(ResourceError, match=r"data_parallel = 3.*room for 2"), device_slots(ComputeConfig(), 3):
        pytest.fail("there are two")


def test_lanes_are_no_room_for_processes_of_a_training(lanes: list[tuple[int, int]]) -> None:
    """Each needs a GPU: for a fourth, three GPUs with two lanes each would be waited for without end."""
    compute = ComputeConfig(device="cuda")
    assert most_processes(compute) == 3 < slot_count(compute)
    with pytest.raises(ResourceError, match=r"data_parallel = 4.*room for 3"), device_slots(compute, 4):
        pytest.fail("there are three")


def test_the_patient_come_after_all_others_however_long_they_have_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDD_SLOTS", "1")
    order: list[str] = []

    def body(name: str, patient: bool) -> None:
        with device_slots(ComputeConfig(), 1, patient):
            order.append(name)

    threads = []
    with device_slots(ComputeConfig(), 1, patient=True):
        for name, patient in (("a", True), ("b", False), ("c", True), ("d", False)):
            threads.append(threading.Thread(target=body, args=(name, patient)))
            threads[-1].start()
            until_so_many_wait(len(threads))
    for thread in threads:
        thread.join()
    assert order == ["b", "d", "a", "c"]
