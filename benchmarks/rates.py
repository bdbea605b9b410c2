"""Measure the rates that `cudd plan` counts with, and how far its two-number model is off.

    python benchmarks/rates.py                              this machine's cores, one task on each
    python benchmarks/rates.py --device cuda --amp bf16
    python benchmarks/rates.py --json FILE

`flows.rates.Device` says: a step takes FLOPs ÷ `flops` + `step` seconds. Steps of several kinds are timed (training,
synthesis, inference; ConvNet-3 and ResNet-18; small and large batches), both numbers are fitted by least squares on
relative errors, and every point is shown with the model's error. On a CPU one thread is timed; with a task on each of
`--tasks` cores the rate is that many times as high, if the cores do not disturb each other.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch

from benchmarks import synthesis, training
from benchmarks.arguments import arguments
from benchmarks.timing import Rounds, alternately, conditions, report
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from flows.flops import forward_flops

POINTS = (
    *(("training", arch, batch) for arch in ("convnet3", "resnet18") for batch in (16, 64)),
    *(("synthesis", "convnet3", 10), ("synthesis", "convnet3", 100), ("synthesis", "resnet18", 10)),
    *(("inference", arch, 250) for arch in ("convnet3", "resnet18")),
)


def main() -> int:
    """Measure, fit, print, write."""
    parser = arguments(__doc__, "device", "amp", seconds=15)
    parser.add_argument("--tasks", type=int, default=2, help="tasks at once on a CPU")
    options = parser.parse_args()
    runtime = Runtime(ComputeConfig(device=options.device, amp=options.amp))
    work, measured, rows = [], [], []
    for kind, arch, batch in POINTS:
        seconds, flops = step_of(kind, arch, batch, runtime, options.seconds)
        work.append([flops, 1.0])
        measured.append(seconds.median)
        rows.append({"step": f"{kind}, {arch}, batch {batch}", "ms": seconds.scaled(1000), "n": seconds.n})
    times = np.array(measured)
    (per_flop, step), *_ = np.linalg.lstsq(np.array(work) / times[:, None], np.ones(len(times)), rcond=None)
    predicted = np.array(work) @ np.array([per_flop, step])
    for row, error in zip(rows, predicted / times - 1, strict=True):
        row["model's error, %"] = 100 * float(error)
    tasks = options.tasks if options.device == "cpu" else 1
    fitted = {"flops": tasks / per_flop, "step": step, "largest error": float(np.abs(predicted / times - 1).max())}
    report("Rates of `cudd plan`", rows, conditions(0, device=options.device) | fitted, options.json)
    return 0


def step_of(kind: str, arch: str, batch: int, runtime: Runtime, seconds: float) -> tuple[Any, float]:
    """Return the seconds of one step and its FLOPs as `cudd plan` counts them."""
    if kind == "training":
        rounds = training.measure(arch, batch, runtime, 0, seconds)
        steps = training.STEPS * training.EPOCHS[runtime.device.type]
        return rounds.seconds("ours").scaled(1 / steps), 3 * batch * forward_flops(arch, 10, 3, 32)
    if kind == "synthesis":
        rounds, steps = synthesis.measure(arch, batch, runtime, 0, seconds, no_reference=True)
        return rounds.seconds("ours").scaled(1 / steps), 4 * batch * forward_flops(arch, 100, 3, 32)
    return infer(arch, batch, runtime, seconds).seconds("bare"), batch * forward_flops(arch, 10, 3, 32)


def infer(arch: str, batch: int, runtime: Runtime, seconds: float) -> Rounds:
    """Time forward passes."""
    network = runtime.network(freeze_batchnorm(build_network(arch, 10, 3, 32, 0).eval().requires_grad_(False)))
    images = runtime.images(torch.zeros(batch, 3, 32, 32))

    @torch.no_grad()
    def bare() -> None:
        with runtime.autocast():
            network(images)

    return alternately({"bare": bare}, seconds=seconds, device=runtime.device.type)


if __name__ == "__main__":
    raise SystemExit(main())
