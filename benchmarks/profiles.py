"""Where a step's CPU time goes, by torch.profiler: synthesis and training, operations gathered by what they are for.

    python benchmarks/profiles.py                           ConvNet-3: synthesis at batch 100, training at batch 16
    python benchmarks/profiles.py --arch resnet18 --batch 10 --json FILE
    python benchmarks/profiles.py --operations              torch's own table of operations as well

To see what a change removed, run it in a checkout of the commit before and in this one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from torch.profiler import ProfilerActivity, profile

from benchmarks import synthesis, training
from benchmarks.arguments import arguments
from benchmarks.timing import Rounds, conditions, report
from cudd_core.compute.runtime import ComputeConfig, Runtime

GROUPS = {
    "Winograd's convolutions": ("_Winograd",),
    "convolutions left direct": ("conv",),
    "products of matrices (first level, crops, heads)": ("mm", "matmul", "linear"),
    "BatchNorm and what follows it, in one": ("_Normalise",),
    "BatchNorm": ("native_batch_norm", "_FrozenBatchNorm"),
    "statistics of batches": ("var_mean", "batch_norm_update_stats", "_BatchStatistics"),
    "ReLU, pooling": ("relu", "clamp_min", "threshold", "pool"),
    "optimiser": ("Optimizer", "_fused_adam", "_foreach", "_fused_sgd"),
    "copies, fills": ("copy_", "fill_", "zero_", "clone", "contiguous"),
    "elementwise": ("add", "mul", "div", "sub", "clamp", "sqrt"),
}


def main() -> int:
    """Profile, print, write."""
    parser = arguments(__doc__, "convolution")
    parser.add_argument("--arch", default="convnet3")
    parser.add_argument("--batch", type=int, help="default: 100 in synthesis, 16 in training")
    parser.add_argument("--operations", action="store_true")
    options = parser.parse_args()
    runtime = Runtime(ComputeConfig(convolution=options.convolution))
    rows: dict[str, dict[str, Any]] = {name: {"operations": name} for name in (*GROUPS, "everything else", "all, ms")}
    for title, measure, batch in (
        ("synthesis", synthesis.measure, options.batch or 100),
        ("training", training.measure, options.batch or 16),
    ):
        found = profiled(measure, options.arch, batch, runtime, options.operations)
        whole = sum(found.values())
        for name, row in rows.items():
            row[f"{title}, batch {batch}"] = whole if name == "all, ms" else f"{100 * found.get(name, 0) / whole:.1f} %"
    settings = conditions(0) | {"arch": options.arch, "convolution": options.convolution}
    report("Shares of CPU time of a few steps", rows.values(), settings, options.json)
    return 0


def profiled(measure: Any, arch: str, batch: int, runtime: Runtime, operations: bool) -> dict[str, float]:
    """Return milliseconds by group of the body `ours` of another benchmark."""
    bodies: dict[str, Any] = {}
    module = sys.modules[measure.__module__]

    def capture(given: dict[str, Any], **_: Any) -> Rounds:
        bodies.update(given)
        bodies["ours"]()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            bodies["ours"]()
        bodies["profile"] = seen
        return Rounds({}, {})

    with patch.object(module, "alternately", capture):
        measure(arch, batch, runtime, 0, 0.0, **({"no_reference": True} if module is synthesis else {}))
    events = bodies["profile"].key_averages()
    if operations:
        print(events.table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=60))
    found: dict[str, float] = {}
    for event in events:
        name = next((g for g, parts in GROUPS.items() if any(p in event.key for p in parts)), "everything else")
        found[name] = found.get(name, 0.0) + event.self_cpu_time_total / 1000
    return found


if __name__ == "__main__":
    raise SystemExit(main())
