"""How much faster two Ray workers synthesise than one, on this machine, one thread each.

    python benchmarks/ray_workers.py [--repeats 2] [--json FILE]

The digits in blocks of one class, two curricula. A run makes everything once; then synthesis alone is made again by
`--force-stages`, with one worker and with two in turns. Timed is the second curriculum's synthesis, 10 tasks: the first
one's has warmed the workers, whose start and imports are not in it. All digests must be equal.

Needs two idle cores. Beside wall time stand the seconds that workers computed and those that they waited for a core
(Linux, /proc/PID/schedstat). The second ratio takes their waiting out, though not the driver's: a machine that others
use too can be judged by it alone. What the machine itself gives is measured in between: one process and two, without
Ray, Prefect and a store, that do the same arithmetic. Exit code 1 if two workers are less than 1.8 times as fast by
wall time, or digests differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.servers import own_prefect

ROOT = Path(__file__).parents[1]
GOAL = 1.8
RECIPE = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet3-w32
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: explicit, boundaries: [1, 10], ipc: 10, block_size: 1, slices_per_shard: 9}
synthesis: {iterations: 1000, batch_size: 10, jitter: 1}
relabel: {epochs_per_shard: 5}
student: {training: {epochs: 2, batch_size: 16}}
evaluation: {training: {epochs: 2, batch_size: 16}, seeds: 1}
baselines: []
compute: {device: cpu, threads: 1, amp: "off"}
"""


Row = dict[str, Any]
"""`wall`, `computed`, `waited` in seconds, the latter two summed over workers; `workers` that ran; `digest`."""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows: dict[int, list[Row]] = {1: [], 2: []}
    gains: list[float] = []
    with tempfile.TemporaryDirectory(prefix="cudd-ray-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        (home / "recipe.yaml").write_text(RECIPE)
        os.environ["PYTHONPATH"] = str(ROOT)
        with own_prefect(home):
            digests = {run(home, "local", 2)["digest"]}
            for _ in range(options.repeats):
                gains.append(bare(2) / bare(1))
                print(f"two bare processes make {gains[-1]:.2f} times the steps of one", flush=True)
                for workers in (1, 2):
                    row = run(home, "ray", workers)
                    digests.add(row["digest"])
                    rows[workers].append(row)
                    print(
                        f"{workers} worker(s): {row['wall']:.1f} s, {row['computed']:.1f} s computed, "
                        f"{row['waited']:.1f} s waited for a core, {row['workers']} process(es)",
                        flush=True,
                    )
    ratio = median(rows[1], 1, 0) / median(rows[2], 2, 0)
    free = median(rows[1], 1, 1) / median(rows[2], 2, 1)
    same = "one digest" if len(digests) == 1 else f"digests differ: {digests}"
    gain = statistics.median(gains)
    print(f"ratio {ratio:.2f}; without waiting for cores {free:.2f}; of two bare processes {gain:.2f}; {same}")
    if options.json:
        report = {"rows": rows, "ratio": round(ratio, 3), "ratio without waiting": round(free, 3), "bare": gains}
        options.json.write_text(json.dumps({**report, "digests": sorted(digests)}, indent=2) + "\n")
    return 0 if ratio >= GOAL and len(digests) == 1 else 1


def median(rows: list[Row], workers: int, without: int) -> float:
    """Return the median wall time, less what a worker waited for a core if `without` is 1."""
    return float(statistics.median(row["wall"] - without * row["waited"] / workers for row in rows))


def run(home: Path, runner: str, workers: int) -> Row:
    """Run the flow with that many workers and return what its second curriculum's synthesis took."""
    from flows.distill import distill
    from flows.run import PipelineRun
    from flows.summary import summarize

    row: Row = {}
    gather = PipelineRun.gather

    def timed(self: Any, stage: str, tasks: Any, current: Any = None) -> Any:
        if stage != "synthesize" or current is None or current.name != "curriculum 2":
            return gather(self, stage, tasks, current)
        before, began = usage(), time.monotonic()
        refs = gather(self, stage, tasks, current)
        row["wall"], after = time.monotonic() - began, usage()
        spent = [[x - y for x, y in zip(now, before.get(pid, (0, 0)), strict=True)] for pid, now in after.items()]
        row["computed"], row["waited"] = sum(each[0] for each in spent), sum(each[1] for each in spent)
        row["workers"] = sum(each[0] > 0.1 for each in spent)
        return refs

    os.environ["CUDD_SLOTS"] = str(workers)
    force = [] if runner == "local" else ["synthesize"]
    # Pictures are half of a tiny run's time and no part of what is measured.
    with patch("flows.distill.finish", summarize), patch.object(PipelineRun, "gather", timed):
        summary = distill(recipe=str(home / "recipe.yaml"), runner=runner, force_stages=force)
    return {**row, "digest": summary["dataset"]["digest"]}


def bare(processes: int, seconds: float = 10) -> float:
    """Return the steps a second of that many processes together, of the recipe's network and batch, one thread each."""
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(processes), context.Queue()
    started = [context.Process(target=_steps, args=(barrier, rates, seconds)) for _ in range(processes)]
    for each in started:
        each.start()
    total = sum(rates.get() for _ in started)
    for each in started:
        each.join()
    return float(total)


def _steps(barrier: Any, rates: Any, seconds: float) -> None:
    import torch

    from cudd_core.models.registry import build_network

    torch.set_num_threads(1)
    network = build_network("convnet3-w32", 10, 1, 8, seed=0).eval().requires_grad_(False)
    images = torch.zeros(10, 1, 8, 8, requires_grad=True)

    def step() -> None:
        images.grad = None
        network(images).square().sum().backward()

    for _ in range(300):
        step()
    barrier.wait()
    done, began = 0, time.monotonic()
    while time.monotonic() - began < seconds:
        step()
        done += 1
    rates.put(done / (time.monotonic() - began))


def usage() -> dict[int, tuple[float, float]]:
    """Return seconds on a core and seconds of waiting for one, of every worker of this process's Ray."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (place / "cmdline").read_bytes().startswith((b"ray::IDLE", b"ray::_perform")) and ours(place):
                tasks = [list(map(int, each.read_text().split())) for each in place.glob("task/*/schedstat")]
                found[int(place.name)] = (sum(t[0] for t in tasks) / 1e9, sum(t[1] for t in tasks) / 1e9)
        except OSError:  # it has ended
            continue
    return found


def ours(place: Path) -> bool:
    """Whether a process descends from this one."""
    while place.name not in {"0", "1"}:
        if place.name == str(os.getpid()):
            return True
        parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
        place = place.parent / parent
    return False


if __name__ == "__main__":
    sys.exit(main())
