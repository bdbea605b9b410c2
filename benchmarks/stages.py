"""A recipe's stages in two checkouts, one run each in turns: seconds by stage, and whether accuracies agree.

    git worktree add --detach ../before COMMIT
    python benchmarks/stages.py --before ../before --set data.root=CIFAR --json FILE
    python benchmarks/stages.py --set compute.convolution=direct --after-set compute.convolution=winograd

Each run is a process with an empty home, as a person would start it. Without `--before` both are this checkout, and
`--after-set` is what differs. Seconds of a stage are summed over its tasks, so two in flight count twice; `whole run`
is the clock's. Budgets are cut (`CUT`) so that it takes a quarter of an hour: ratios carry over, accuracies do not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.arguments import arguments
from benchmarks.servers import own_home
from benchmarks.timing import ROOT, conditions, report

CUT = (
    "synthesis.iterations=300",
    "student.training.epochs=100",
    "evaluation.training.epochs=100",
    "baselines=[]",
)


def main() -> int:
    """Measure, print, write."""
    parser = arguments(__doc__)
    parser.add_argument("--recipe", default="cifar10-convnet-ipc10")
    parser.add_argument("--before", type=Path, default=ROOT, metavar="CHECKOUT")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of both runs")
    parser.add_argument("--after-set", action="append", default=[], metavar="KEY=VALUE", help="of this checkout's run")
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    settings = conditions(0) | {"recipe": options.recipe, "before": commit(options.before)}
    shared = [*CUT, *options.set]
    runs: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for number in range(options.repeats):
        for name in ("before", "after") if number % 2 == 0 else ("after", "before"):
            checkout, more = (ROOT, options.after_set) if name == "after" else (options.before, [])
            runs[name].append(distil(options.recipe, checkout.resolve(), [*shared, *more]))
    rows = []
    stages = {stage: None for run in (*runs["before"], *runs["after"]) for stage in run["seconds"]}
    for stage in (*stages, "all stages", "whole run"):
        before, after = (mean(seconds(run, stage) for run in runs[name]) for name in ("before", "after"))
        rows.append({"stage": stage, "before, s": before, "after, s": after, "ratio": before / (after or 1e-9)})
    report("Seconds by stage", rows, settings | {"repeats": options.repeats}, options.json)
    for name, found in runs.items():
        for run in found:
            print(f"{name}: accuracy {json.dumps(run['accuracy'])}")
    return 0


def distil(recipe: str, checkout: Path, overrides: list[str]) -> dict[str, Any]:
    """Run a recipe with a checkout's code in an empty home; return its summary with `wall` seconds."""
    command = [sys.executable, "-m", "flows.cli", "distill", recipe]
    for override in overrides:
        command += ["--set", override]
    with tempfile.TemporaryDirectory(prefix="cudd-stages-") as home:
        summary = Path(home) / "summary.json"
        with own_home(Path(home)):
            environment = os.environ | {"PYTHONPATH": str(checkout)}
            started = time.perf_counter()
            subprocess.run([*command, "--summary", str(summary)], cwd=checkout, env=environment, check=True)
            document: dict[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
            document["wall"] = time.perf_counter() - started
    return document


def seconds(run: dict[str, Any], stage: str) -> float:
    """Return a run's seconds of a stage, of all stages, or of the clock."""
    if stage == "whole run":
        return float(run["wall"])
    return float(sum(run["seconds"].values()) if stage == "all stages" else run["seconds"].get(stage, 0.0))


def mean(values: Any) -> float:
    """Return the mean of an iterable."""
    found = list(values)
    return float(sum(found) / len(found))


def commit(checkout: Path) -> str:
    """Return the short hash of a checkout."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, text=True)
    return found.stdout.strip()


if __name__ == "__main__":
    raise SystemExit(main())
