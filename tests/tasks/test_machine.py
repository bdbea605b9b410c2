"""Limits of control groups, of both versions, in files that the tests write."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks import machine


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(96)), raising=False)
    return tmp_path


def write(groups: Path, own: str, files: dict[str, str]) -> None:
    (groups / "own").write_text(own)
    for name, text in files.items():
        (groups / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / "cgroup" / name).write_text(f"{text}\n")


ALL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
JOB = "slurm/job_7"
V1 = f"4:memory:/{JOB}\n1:cpu,cpuacct:/docker/of-the-host\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "cores", "memory"),
    [
        ("0::/\n", {}, 96, ALL),
        ("0::/\n", {"memory.max": "max", "cpu.max": "max 100000"}, 96, ALL),
        ("0::/\n", {"memory.max": "3000000", "cpu.max": "450000 100000"}, 4, 3_000_000),
        # The limit is that of the whole job, whatever its step has.
        (f"0::/{JOB}/step_0\n", {f"{JOB}/memory.max": "5000000", f"{JOB}/step_0/memory.max": "max"}, 96, 5_000_000),
        (f"0::/{JOB}\n", {f"{JOB}/cpu.max": "50000 100000", "memory.max": "7000000"}, 1, 7_000_000),
        (V1, {f"memory/{JOB}/memory.limit_in_bytes": "9000000"}, 96, 9_000_000),
        (V1, {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2, ALL),
        (V1, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 96, ALL),
        (V1, {"memory/memory.limit_in_bytes": str(2**63 - 4096)}, 96, ALL),
    ],
)
def test_the_least_of_all_limits_holds(groups: Path, own: str, files: dict[str, str], cores: int, memory: int) -> None:
    write(groups, own, files)
    assert (machine.core_count(), machine.memory_bytes()) == (cores, memory)


def test_without_control_groups_there_is_the_machine(groups: Path) -> None:
    assert (machine.core_count(), machine.memory_bytes()) == (96, ALL)
