"""Training on soft labels against bare network steps on tensors that are there.

    python benchmarks/training.py                           ConvNet-3 and ResNet-18, batch 16 and 64
    python benchmarks/training.py --case convnet3:16 --threads 2
    python benchmarks/training.py --json FILE

`ours` is `cudd_core.distillation.train_on_set` over one epoch of four batches, on a GPU over 1,750 of them,
which are as many steps as 100 images have in 1,000 epochs: crops, flips, CutMix, labels, loss, AdamW, the record at the
end. `bare` makes as many steps (forward, the same loss, backward, AdamW) of the same network on one fixed batch and its
logits; on a GPU it is a CUDA graph too, and `eager` is the same launched kernel by kernel. `unfused` is `bare` with a
ConvNet's first level computed layer by layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.arguments import arguments
from benchmarks.made import random_set
from benchmarks.timing import Rounds, alternately, conditions, report
from cudd_core.compute.cpu.kernels import Fusible
from cudd_core.compute.graphs import Recorded
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LossConfig, train_on_set
from cudd_core.losses.soft_label import soft_label
from cudd_core.models.registry import build_network
from cudd_core.records import SoftLabels
from cudd_core.seeding import torch_rng
from cudd_core.training import TrainingConfig, make_optimizer

CASES = (("convnet3", 16), ("convnet3", 64), ("resnet18", 16), ("resnet18", 64))
LIMIT = 0.85
SIZE, CLASSES, STEPS = 32, 10, 4
EPOCHS = {"cpu": 1, "cuda": 1750}
SLOW = 40
"""Steps at a time, on a GPU, of what is launched kernel by kernel."""


def main() -> int:
    """Measure, print, write."""
    names = ("device", "amp", "convolution", "threads", "seed")
    options = arguments(__doc__, *names, cases=CASES, seconds=25).parse_args()
    compute = ComputeConfig(
        device=options.device, amp=options.amp, threads=options.threads, convolution=options.convolution
    )
    settings = conditions(options.seed, options.threads, options.device)
    settings |= {"amp": options.amp, "convolution": options.convolution}
    rows = []
    for arch, batch in options.case or CASES:
        rounds = measure(arch, batch, Runtime(compute), options.seed, options.seconds)
        share = rounds.ratio("bare", "ours")
        steps = STEPS * EPOCHS[options.device]
        other: dict[str, object]
        if options.device == "cuda":
            other = {"share of eager": rounds.ratio("eager", "ours", steps / SLOW)}
        else:
            other = {"unfused ÷ bare": rounds.ratio("unfused", "bare") if "unfused" in rounds.wall else ""}
        rows.append(
            {
                "network, batch": f"{arch}, {batch}",
                "images a second": steps * batch / rounds.seconds("ours").median,
                "share of bare": share,
                **other,
                "by CPU seconds": rounds.cpu_ratio("bare", "ours"),
                "holds": share.median >= LIMIT,
                "n": share.n,
                "machine busy": rounds.busy,
            }
        )
    report("Student training, images a second as a share of bare network steps", rows, settings, options.json)
    return 0


def measure(arch: str, batch: int, runtime: Runtime, seed: int, seconds: float) -> Rounds:
    """Return the times of `STEPS` steps each way."""
    n = STEPS * batch
    generator = torch_rng(seed, "set")
    spec, synthetic = random_set(arch, n, CLASSES, SIZE, generator)
    cuda, epochs = runtime.device.type == "cuda", EPOCHS[runtime.device.type]
    logits = torch.randn(epochs, n, CLASSES, generator=generator).half()
    config = TrainingConfig(epochs=epochs, batch_size=batch)
    network, bare_network = (build_network(arch, CLASSES, 3, SIZE, seed) for _ in range(2))

    def ours() -> None:
        train_on_set(
            network, spec, synthetic, [SoftLabels(logits, 0)], config, LossConfig(), ReplayConfig(), seed, runtime
        )

    images = runtime.images(torch.randn(batch, 3, SIZE, SIZE, generator=generator))
    targets = logits[0, :batch].to(runtime.device)

    def stepping(network: nn.Module) -> Callable[[], tuple[Tensor, ...]]:
        optimizer = make_optimizer(network, config)

        def step() -> tuple[Tensor, ...]:
            with runtime.autocast():
                answers = network(images)
            optimizer.zero_grad(set_to_none=True)
            soft_label(answers.float(), targets, LossConfig().temperature).backward()
            optimizer.step()
            return ()

        return step

    def repeating(step: Callable[[], object], times: int) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(times):
                step()

        return steps

    bare = stepping(runtime.network(bare_network).train())
    recorded = Recorded(bare, runtime.device, cuda)
    bodies: dict[str, Callable[[], object]] = {"ours": ours, "bare": repeating(recorded, STEPS * epochs)}
    if cuda:
        bodies["eager"] = repeating(bare, SLOW)
    elif isinstance(bare_network, Fusible) and bare_network.fused:
        plain = build_network(arch, CLASSES, 3, SIZE, seed)
        runtime.network(plain).train()
        assert isinstance(plain, Fusible)
        plain.fused = False
        bodies["unfused"] = repeating(stepping(plain), STEPS)
    return alternately(bodies, seconds=seconds, device=runtime.device.type)


if __name__ == "__main__":
    raise SystemExit(main())
