"""Cores and memory that this process may use: less than the machine has if a container, job or unit limits it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
_CPU_TIMES = ("cpu.cfs_quota_us", "cpu.cfs_period_us")


def core_count() -> int:
    """Return the number of whole cores that this process may use, at least 1."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [int(quota) / int(period) for quota, period in _limits("cpu", ("cpu.max",), _CPU_TIMES)]
    return max(1, int(min([own, *quotas])))


def memory_bytes() -> int:
    """Return the bytes of memory that this process may use."""
    limits = [int(limit) for (limit,) in _limits("memory", ("memory.max",), ("memory.limit_in_bytes",))]
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *limits])


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups: its own and those that enclose it."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # cgroup version 2 has one unnamed hierarchy; version 1 has one per controller, in a folder of that name.
        if controllers and controller not in controllers.split(","):
            continue
        root = _GROUPS / controller if controllers else _GROUPS
        own = root / path.strip("/")
        # Inside a container the path may be the host's, which does not exist there; the root does.
        yield from (folder for folder in (own, *own.parents) if folder == root or root in folder.parents)


def _limits(controller: str, *spellings: tuple[str, ...]) -> Iterator[list[str]]:
    """Yield the words in the limit files of every group that has them. `spellings`: file names of version 2, then 1."""
    for folder in _groups(controller):
        for names in spellings:
            try:
                words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            except OSError:
                continue
            if words[0].isdecimal():  # not `max`, nor -1
                yield words
