"""What a task costs beside its work: hundreds of class blocks with next to nothing to compute.

    python benchmarks/orchestration.py                     200 blocks x 2 curricula, local
    python benchmarks/orchestration.py --runner ray        bodies in Ray workers
    python benchmarks/orchestration.py --json FILE

The whole flow runs on an image folder of 200 classes of five 8 x 8 images: once in blocks of one class, once in a
single block. Both do the same little work, so the difference of their times, divided by the difference of their tasks,
is what a task costs: Prefect's states, the look-up, the lock, MLflow's attempt, the upload read back and verified. It
is an upper bound, since 200 small passes of a network cost more than one of 200 classes. Each is run in an empty home
(computed), then again (reused). Memory is the flow process's resident set after a quarter and three quarters of the
time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.servers import own_prefect

ROOT = Path(__file__).parents[1]
IMAGES, SIZE = 5, 8
RECIPE = """
data: {{source: image_folder, root: "{data}", image_size: 8, test_split: val}}
teacher:
  arch: convnet2-w8
  minimum_margin: 0.0
  training: {{optimizer: sgd, learning_rate: 0.05, epochs: 1, batch_size: 100}}
schedule: {{kind: explicit, boundaries: [1, 2], ipc: 2, block_size: {block}, slices_per_shard: 5}}
synthesis: {{iterations: 1, batch_size: 100, jitter: 1}}
relabel: {{epochs_per_shard: 5}}
student: {{training: {{epochs: 1, batch_size: 100}}}}
evaluation: {{training: {{epochs: 1, batch_size: 100}}, seeds: 1}}
baselines: []
compute: {{device: cpu, threads: 1, amp: "off"}}
"""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runner", default="local")
    parser.add_argument("--blocks", type=int, default=200, metavar="N", help="classes, and class blocks")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child[0], options.runner, Path(options.child[1]))
    with tempfile.TemporaryDirectory(prefix="cudd-cost-", ignore_cleanup_errors=True) as name:
        parent = Path(name)
        write_images(parent / "data", options.blocks)
        with own_prefect(parent):
            found = {block: measure(parent, block, options.runner) for block in (options.blocks, 1)}
    report = {"runner": options.runner, "one block": found[options.blocks], "blocks": found[1]}
    for kind in ("computed", "reused"):
        one, many = found[options.blocks][kind], found[1][kind]
        tasks = many["tasks"] - one["tasks"]
        cost = (many["seconds"] - one["seconds"]) / tasks
        report[f"milliseconds per task, {kind}"] = round(1000 * cost)
        print(
            f"{options.runner}, {kind}: {many['tasks']} tasks in {many['seconds']:.1f} s, {one['tasks']} in "
            f"{one['seconds']:.1f} s: {1000 * cost:.0f} ms a task; {many['early_mb']} MB after a quarter, "
            f"{many['late_mb']} MB after three quarters of the time",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def write_images(folder: Path, classes: int) -> None:
    """Write an image folder; a class is a colour."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("val", 1)):
        for label in range(classes):
            place = folder / split / f"c{label:03d}"
            place.mkdir(parents=True)
            colour = np.array([label % 6, label // 6 % 6, label // 36]) * 50
            for number in range(count):
                noisy = np.clip(colour + draw.integers(-20, 20, (SIZE, SIZE, 3)), 0, 255)
                Image.fromarray(noisy.astype(np.uint8)).save(place / f"{number}.png")


def measure(parent: Path, block: int, runner: str) -> dict[str, Any]:
    """Run in an empty home, then again; each in a process of its own."""
    home = parent / f"home-{block}"
    home.mkdir()
    (home / "recipe.yaml").write_text(RECIPE.format(data=parent / "data", block=block))
    environment = {**os.environ, "CUDD_HOME": str(home), "PYTHONPATH": str(ROOT)}
    found = {}
    for kind in ("computed", "reused"):
        out = home / f"{kind}.json"
        with (home / f"{kind}.log").open("wb") as log:
            command = [sys.executable, __file__, "--runner", runner, "--child", str(home), str(out)]
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise SystemExit((home / f"{kind}.log").read_text()[-3000:])
        found[kind] = json.loads(out.read_text())
    return found


def child(home: str, runner: str, out: Path) -> int:
    """Run the flow once and write what it took."""
    from flows.distill import distill
    from flows.summary import summarize

    samples = [resident_mb()]
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            samples.append(resident_mb())

    threading.Thread(target=sample, daemon=True).start()
    began = time.monotonic()
    # Pictures are half of a tiny run's time and no part of what is measured.
    with patch("flows.distill.finish", summarize):
        summary = distill(recipe=f"{home}/recipe.yaml", runner=runner)
    seconds = time.monotonic() - began
    ended.set()
    row = {
        "seconds": round(seconds, 2),
        "tasks": summary["computed_tasks"] + summary["reused_tasks"],
        "computed": summary["computed_tasks"],
        "early_mb": samples[len(samples) // 4],
        "late_mb": samples[len(samples) * 3 // 4],
    }
    out.write_text(json.dumps(row))
    return 0


def resident_mb() -> int:
    """Return this process's resident memory in MB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


if __name__ == "__main__":
    sys.exit(main())
