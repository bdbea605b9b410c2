"""Small trainings and syntheses side by side on one GPU, against the same ones one after another.

    python benchmarks/lanes.py                              three at a time: ConvNet-3 and ResNet-18
    python benchmarks/lanes.py --case synthesize:resnet18:10 --at-once 6 --json FILE

Each is what a task does, from networks on the host to results on the host, recording of its graphs included. `alone`
does them one after another, `shared` in threads on the GPU's default stream, `lanes` in threads with a lane each, as
slots that share a GPU do. All three have to give the same bytes; exit code 1 where they do not.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor

from benchmarks.arguments import arguments
from benchmarks.made import random_set
from benchmarks.synthesis import batch_of, network
from benchmarks.timing import Rounds, alternately, conditions, report
from cudd_core.compute.lanes import lane
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LossConfig, train_on_set
from cudd_core.models.committee import Committee
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.descend import descend
from cudd_core.records import SoftLabels
from cudd_core.seeding import torch_rng
from cudd_core.training import TrainingConfig

CASES = ("train:convnet3:16", "train:resnet18:16", "synthesize:convnet3:10", "synthesize:resnet18:10")
SIZE, CLASSES, IMAGES = 32, 10, 100

Job = Callable[[int], bytes]
"""The number of a network or batch → the digest of what came out."""


def main() -> int:
    """Measure, print, write."""
    parser = arguments(__doc__, "seed", seconds=20, device="cuda", amp="bf16")
    parser.add_argument("--case", action="append", metavar="WHAT:ARCH:BATCH", help=f"default: {', '.join(CASES)}")
    parser.add_argument("--at-once", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000, help="of each training or synthesis")
    options = parser.parse_args()
    compute = ComputeConfig(device=options.device, amp=options.amp)
    settings = conditions(options.seed, 1, options.device) | {"amp": options.amp, "at once": options.at_once}
    rows = []
    for case in options.case or CASES:
        what, arch, batch = case.split(":")
        make = training if what == "train" else synthesis
        rounds, same = measure(make(arch, int(batch), options.steps, compute, options.seed), options)
        rows.append(
            {
                "case": case,
                "alone, ms a step": rounds.seconds("alone").scaled(1000 / options.steps / options.at_once),
                "alone ÷ shared": rounds.ratio("alone", "shared"),
                "alone ÷ lanes": rounds.ratio("alone", "lanes"),
                "same bytes": same,
                "n": rounds.ratio("alone", "lanes").n,
            }
        )
    report("Small tasks side by side on one GPU", rows, settings, options.json)
    return 0 if all(row["same bytes"] for row in rows) else 1


def measure(job: Job, options: argparse.Namespace) -> tuple[Rounds, bool]:
    """Return the times of `at_once` jobs each way, and whether all ways gave the same."""
    found: set[tuple[bytes, ...]] = set()
    numbers = range(options.at_once)

    def in_a_lane(number: int) -> bytes:
        with lane(number, 0) if options.device == "cuda" else nullcontext():
            return job(number)

    def noted(run: Callable[[], tuple[bytes, ...]]) -> Callable[[], None]:
        return lambda: found.add(run())

    with ThreadPoolExecutor(options.at_once) as pool:
        rounds = alternately(
            {
                "alone": noted(lambda: tuple(map(job, numbers))),
                "shared": noted(lambda: tuple(pool.map(job, numbers))),
                "lanes": noted(lambda: tuple(pool.map(in_a_lane, numbers))),
            },
            seconds=options.seconds,
            device=options.device,
        )
    return rounds, len(found) == 1


def training(arch: str, batch: int, steps: int, compute: ComputeConfig, seed: int) -> Job:
    """Trainings on soft labels of one set of 100 images, from different initial weights."""
    generator = torch_rng(seed, "set")
    spec, synthetic = random_set(arch, IMAGES, CLASSES, SIZE, generator)
    epochs = max(1, steps * batch // IMAGES)
    labels = SoftLabels(torch.randn(epochs, IMAGES, CLASSES, generator=generator).half(), 0)
    config = TrainingConfig(epochs=epochs, batch_size=batch)

    def job(number: int) -> bytes:
        record = train_on_set(
            *(build_network(arch, CLASSES, 3, SIZE, number), spec, synthetic, [labels], config),
            *(LossConfig(), ReplayConfig(), seed, Runtime(compute)),
        )
        return _digest(record.state.values())

    return job


def synthesis(arch: str, batch: int, steps: int, compute: ComputeConfig, seed: int) -> Job:
    """Syntheses of different batches by the same teacher and student."""
    config = SynthesisConfig(iterations=steps, batch_size=batch, log_every=1000)

    def job(number: int) -> bytes:
        runtime = Runtime(compute)
        originals, labels, normalizer = batch_of(batch, seed + number, runtime.device)
        networks = [runtime.network(freeze_batchnorm(network(arch, k))) for k in (0, 1)]
        with ExitStack() as stack:
            objective = CuddObjective(Committee([networks[0]], [arch]), networks[1], config, runtime, stack)
            images, _ = descend(objective, originals, labels, labels * 0, normalizer, seed, runtime)
        return _digest([images])

    return job


def _digest(tensors: Iterable[Tensor]) -> bytes:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.digest()


if __name__ == "__main__":
    raise SystemExit(main())
