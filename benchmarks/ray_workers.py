"""How much faster two Ray workers synthesise than one, on this machine, one thread each.

    python benchmarks/ray_workers.py [--repeats 2] [--json FILE]

A run on the digits, in blocks of one class, is made once. Then its synthesis alone is made again by `--force-stages`,
with one worker and with two in turns. Workers are warm: classification, forced too, comes before, uncounted. All
digests must be equal. Needs two idle cores. Exit code 1 if two workers are less than 1.8 times as fast, or digests
differ.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

GOAL = 1.8
RECIPE = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet3-w32
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: explicit, boundaries: [10], ipc: 10, block_size: 1, slices_per_shard: 5}
synthesis: {iterations: 400, batch_size: 10, jitter: 1}
relabel: {epochs_per_shard: 5}
student: {training: {epochs: 2, batch_size: 16}}
evaluation: {training: {epochs: 2, batch_size: 16}, seeds: 1}
baselines: []
compute: {device: cpu, threads: 1, amp: "off"}
"""


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(*options.child)
    from flows.servers import ensure_prefect_server, stop_servers

    rows: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory(prefix="cudd-ray-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        (home / "recipe.yaml").write_text(RECIPE)
        for variable in ("MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT", "PREFECT_API_URL"):
            os.environ.pop(variable, None)
        os.environ |= {
            "CUDD_HOME": name,
            "PREFECT_HOME": f"{name}/prefect",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        }
        os.environ["PREFECT_API_URL"] = ensure_prefect_server(home)
        try:
            digests = {run(home, 0)["dataset"]["digest"]}
            for _ in range(options.repeats):
                for workers in (1, 2):
                    summary = run(home, workers)
                    digests.add(summary["dataset"]["digest"])
                    rows[workers].append(summary["seconds"]["synthesize"])
                    print(f"{workers} worker(s): {rows[workers][-1]:.1f} s", flush=True)
        finally:
            stop_servers(home)
    ratio = statistics.median(rows[1]) / statistics.median(rows[2])
    print(f"ratio {ratio:.2f}; {'one digest' if len(digests) == 1 else f'digests differ: {digests}'}")
    if options.json:
        report = {"seconds": {str(workers): times for workers, times in rows.items()}, "ratio": round(ratio, 3)}
        options.json.write_text(json.dumps({**report, "digests": sorted(digests)}, indent=2) + "\n")
    return 0 if ratio >= GOAL and len(digests) == 1 else 1


def run(home: Path, workers: int) -> dict[str, Any]:
    """Run in a process of its own: locally, or with that many workers."""
    out = home / "summary.json"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDD_SLOTS": str(workers or 2)}
    with (home / "log").open("wb") as log:
        command = [sys.executable, __file__, "--child", "ray" if workers else "local", str(out)]
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise SystemExit((home / "log").read_text(errors="replace")[-3000:])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def child(runner: str, out: str) -> int:
    """Run the flow and write its summary."""
    import flows.distill as flow
    from flows.summary import summarize

    flow.finish = summarize
    force = [] if runner == "local" else ["classify", "synthesize"]
    summary = flow.distill(recipe=f"{os.environ['CUDD_HOME']}/recipe.yaml", runner=runner, force_stages=force)
    Path(out).write_text(json.dumps(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
