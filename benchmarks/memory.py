"""The model of `cudd plan`'s memory against what processes really take.

    python benchmarks/memory.py                             synthesis and training, ConvNet-3 and ResNet-18
    python benchmarks/memory.py --json FILE

Every point is a process of its own that makes two steps and says how much its resident set grew at most from before
the networks were made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.scaling import forget_peak, peak_bytes, resident_bytes
from benchmarks.timing import conditions, report

POINTS = [
    {"stage": stage, "arch": arch, "batch": batch}
    for arch, batches in (("convnet3", (10, 100)), ("resnet18", (10, 50)))
    for stage in ("synthesize", "train_network")
    for batch in batches
]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(**json.loads(options.child))))
        return 0
    rows = []
    for point in POINTS:
        command = [sys.executable, __file__, "--child", json.dumps(point)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append(
            {
                "stage": point["stage"],
                "network, batch": f"{point['arch']}, {point['batch']}",
                "model, MB": found["model"] / 1e6,
                "measured, MB": found["measured"] / 1e6,
                "model ÷ measured": found["model"] / found["measured"],
            }
        )
    report("Memory beside the process: model and measured", rows, conditions(0), options.json)
    return 0


def child(stage: str, arch: str, batch: int) -> dict[str, int]:
    """Return the model's bytes and those measured."""
    from benchmarks import synthesis, training
    from cudd_core.compute.runtime import Runtime
    from flows.memory import stage_memory
    from flows.recipes import apply_overrides, get_recipe

    recipe = apply_overrides(
        get_recipe("cifar10-convnet-ipc10"),
        [
            f"teacher.arch={arch}",
            f"synthesis.batch_size={batch}",
            f"evaluation.training.batch_size={batch}",
        ],
    )
    runtime = Runtime(recipe.compute)
    module: Any = synthesis if stage == "synthesize" else training

    def once(bodies: dict[str, Any], **_: Any) -> None:
        bodies["ours"]()

    module.alternately = once
    extra = {"no_reference": True} if stage == "synthesize" else {}
    module.measure("convnet3-w8", 10, runtime, 0, 0.0, **extra)  # what is loaded once
    before = resident_bytes()
    forget_peak()
    module.measure(arch, batch, runtime, 0, 0.0, **extra)
    measured = peak_bytes() - before
    classes = synthesis.CLASSES if stage == "synthesize" else training.CLASSES
    return {"model": stage_memory(recipe, classes)[stage], "measured": measured}


if __name__ == "__main__":
    raise SystemExit(main())
