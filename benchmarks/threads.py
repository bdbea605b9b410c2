"""A training step with several threads against one, on a CPU.

    python benchmarks/threads.py                    ConvNet-3 and ResNet-18, two threads
    python benchmarks/threads.py --case resnet18-w16:64 --threads 4
    python benchmarks/threads.py --json FILE

Forward, loss, backward and AdamW of one network on one fixed batch. `one` and `several` take turns; `apart` is
`several` with Python's threads sharing the images of a Winograd convolution, as where torch has no OpenMP to ask.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch.nn.functional import cross_entropy

from benchmarks.arguments import arguments
from benchmarks.timing import Rounds, alternately, conditions, report
from cudd_core.compute.cpu import threads as parts
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.models.registry import build_network
from cudd_core.seeding import torch_rng
from cudd_core.training import TrainingConfig, make_optimizer

CASES = (("convnet3", 16), ("convnet3", 128), ("resnet18", 16), ("resnet18", 128))
SIZE, CLASSES, IMAGES = 32, 10, 64
"""Of a body: as many steps as make so many images, at least two."""


def main() -> int:
    """Measure, print, write."""
    options = arguments(__doc__, "seed", cases=CASES, seconds=25, threads=2).parse_args()
    settings = conditions(options.seed, options.threads)
    rows = []
    for arch, batch in options.case or CASES:
        rounds = measure(arch, batch, options.threads, options.seed, options.seconds)
        rows.append(
            {
                "network, batch": f"{arch}, {batch}",
                "images a second, one": repeats(batch) * batch / rounds.seconds("one").median,
                "one ÷ several": rounds.ratio("one", "several"),
                "one ÷ apart": rounds.ratio("one", "apart"),
                "n": len(rounds.wall["one"]),
                "machine busy": rounds.busy,
            }
        )
    report(f"A training step with one thread ÷ with {options.threads}", rows, settings, options.json)
    return 0


def repeats(batch: int) -> int:
    """Return the steps of a body."""
    return max(2, IMAGES // batch)


def measure(arch: str, batch: int, threads: int, seed: int, seconds: float) -> Rounds:
    """Return the times of some steps each way."""
    runtime = Runtime(ComputeConfig())
    network = runtime.network(build_network(arch, CLASSES, 3, SIZE, seed)).train()
    optimizer = make_optimizer(network, TrainingConfig())
    generator = torch_rng(seed, "batch")
    images = runtime.images(torch.randn(batch, 3, SIZE, SIZE, generator=generator))
    labels = torch.randint(0, CLASSES, (batch,), generator=generator)

    def steps(count: int, shared: bool) -> Callable[[], None]:
        def body() -> None:
            torch.set_num_threads(count)
            with nullcontext() if shared else patch.object(parts, "torch_s_threads", lambda: None):
                for _ in range(repeats(batch)):
                    optimizer.zero_grad(set_to_none=True)
                    cross_entropy(network(images), labels).backward()
                    optimizer.step()

        return body

    bodies = {"one": steps(1, True), "several": steps(threads, True), "apart": steps(threads, False)}
    return alternately(bodies, seconds=seconds)


if __name__ == "__main__":
    raise SystemExit(main())
