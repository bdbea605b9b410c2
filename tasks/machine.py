"""What this process may use of the machine: cores and memory, less where a container, a job or a unit is given less."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_CPU_TIMES = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def core_count() -> int:
    """Return the whole cores of this process, at least 1."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [int(quota) / int(period) for quota, period in _limits("cpu", ("cpu.max",), _CPU_TIMES)]
    return max(1, int(min([own, *quotas])))


def memory_bytes() -> int:
    """Return the bytes of memory that this process may have."""
    limits = [int(limit) for (limit,) in _limits("memory", ("memory.max",), ("memory.limit_in_bytes",))]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in: its own and those around it."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Version 2 has one hierarchy, without a name; version 1 one for each controller, in a folder of its name.
        if controllers and controller not in controllers.split(","):
            continue
        root = _GROUPS / controller if controllers else _GROUPS
        own = root / path.strip("/")
        # From within a container the path may be the host's, which is not there: what is, is the root.
        yield from (folder for folder in (own, *own.parents) if folder == root or root in folder.parents)


def _limits(controller: str, *spellings: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the words of the files that hold a limit, of every group that has one. `spellings`: of version 2, of 1."""
    for folder in _groups(controller):
        for names in spellings:
            try:
                words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            except OSError:
                continue
            if words[0].isdecimal():  # not `max`, nor -1
                yield words
