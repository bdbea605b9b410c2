"""Things timed alternately in one process, and what they were timed on.

A ratio of two times is only worth something if whatever else the machine does falls on both alike. So every round runs
each body once, in an order that turns round from one round to the next, and a ratio is taken within a round; its median
and quartiles are reported. (`torch.utils.benchmark` and `pyperf` time one statement after the other.) CPU seconds are
kept beside wall seconds: where they fall behind, the machine was busy with something else and the report says so.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]

BUSY = 0.9
"""Share of CPU seconds in wall seconds below which another program had the core."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of n values."""

    median: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """Summarise at least two values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(median, low, high, len(values))

    def scaled(self, factor: float) -> Spread:
        """Return the summary of the values times `factor`."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.n)

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} – {self.high:.3g})"


@dataclass(frozen=True)
class Rounds:
    """Seconds of each body by round; all lists have the same length."""

    wall: Mapping[str, list[float]]
    cpu: Mapping[str, list[float]]
    device: str = "cpu"

    def seconds(self, name: str) -> Spread:
        """Wall seconds of a body."""
        return Spread.of(self.wall[name])

    def ratio(self, above: str, below: str, work: float = 1.0) -> Spread:
        """Ratio of two bodies' wall seconds, round by round. `work`: how often `below` does what `above` does."""
        return Spread.of([work * a / b for a, b in zip(self.wall[above], self.wall[below], strict=True)])

    def cpu_ratio(self, above: str, below: str) -> Spread:
        """The same of CPU seconds: steadier on a machine that does other things as well, no proof for a claim."""
        return Spread.of([a / b for a, b in zip(self.cpu[above], self.cpu[below], strict=True)])

    @property
    def busy(self) -> bool:
        """Whether other programs took a share of the cores; where a GPU computes, that cannot be told."""
        wall, cpu = (sum(map(sum, found.values())) for found in (self.wall, self.cpu))
        return self.device == "cpu" and cpu < BUSY * wall


def alternately(
    bodies: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    warm_up: int = 1,
    least: int = 3,
    most: int = 200,
    device: str = "cpu",
) -> Rounds:
    """Run all bodies in turn for about `seconds`, at least `least` rounds, after `warm_up` rounds that do not count.

    A body that works in another process returns the CPU seconds that it took there, a float. Before every look at the
    clock, what a GPU still has to do is waited for.
    """

    def synchronize() -> None:
        if device == "cuda":
            import torch

            torch.cuda.synchronize()

    wall: dict[str, list[float]] = {name: [] for name in bodies}
    cpu: dict[str, list[float]] = {name: [] for name in bodies}
    names = list(bodies)
    started = time.perf_counter()
    for number in range(-warm_up, most):
        if number == 0:
            started = time.perf_counter()
        if number >= least and time.perf_counter() - started > seconds:
            break
        for name in names if number % 2 == 0 else reversed(names):
            synchronize()
            before = time.perf_counter(), time.process_time()
            elsewhere = bodies[name]()
            synchronize()
            after = time.perf_counter(), time.process_time()
            if number >= 0:
                wall[name].append(after[0] - before[0])
                cpu[name].append(after[1] - before[1] + (elsewhere if isinstance(elsewhere, float) else 0.0))
    return Rounds(wall, cpu, device)


def conditions(seed: int, threads: int = 1, device: str = "cpu") -> dict[str, Any]:
    """Return what a figure means nothing without: commit, hardware, versions, seed, load at the start."""

    def git(*arguments: str) -> str:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return found.stdout.strip() if found.returncode == 0 else ""

    return {
        "commit": git("rev-parse", "--short", "HEAD") or "not a checkout",
        "changed files": len(git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "seed": seed,
        "threads": threads,
        "device": _gpu_name() if device == "cuda" else f"{_cpu_name()}, {os.cpu_count()} cores",
        "load at start": round(os.getloadavg()[0], 2),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "numpy", "prefect", "mlflow") if find_spec(name)},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu_name() -> str:
    import torch

    return torch.cuda.get_device_name()


def report(
    claim: str,
    rows: Iterable[Mapping[str, Any]],
    settings: Mapping[str, Any],
    destination: Path | None,
) -> None:
    """Print rows of equal keys as a table, and write them with `settings` as JSON.

    A `Spread` is printed as median (quartiles); a row's `holds` says whether it keeps the claim.
    """
    rows = list(rows)
    console = Console(width=160)
    table = Table(title=claim, title_justify="left", box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in settings.items() if name != "versions"), style="dim")
    if destination is not None:
        document = {"claim": claim, **settings, "rows": rows}
        destination.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(document, indent=2, ensure_ascii=False, default=lambda spread: spread.__dict__)
        destination.write_text(text + "\n", encoding="utf-8")


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
