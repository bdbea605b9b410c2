"""A synthesis step against the arithmetic of its networks, and against the loop as the field writes it.

    python benchmarks/synthesis.py                          ConvNet-3 at batch 100 and 10, ResNet-18 at batch 100
    python benchmarks/synthesis.py --case resnet18:100 --device cuda --amp bf16
    python benchmarks/synthesis.py --json FILE

`ours` is `cudd_core.objectives.descend` as a task runs it, start and rounding included, over a few iterations. `bare`
is the forward and backward pass, to the pixels, of the same teacher and student with the same layers and convolutions,
on a batch that is there: no augmentation, loss, statistics or optimiser. On a GPU it is a CUDA graph too, `torch` is
such a graph of torch's own layers, which the claim is about there, and `eager` is that launched kernel by kernel.
`reference` is benchmarks/reference.py in the same process, so with the allocator that the runtime has set; `script` is
the same loop in a process of its own, where nothing was set, as a script runs it (CPU only).
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.arguments import arguments
from benchmarks.reference import ReferenceLoop, views
from benchmarks.timing import Rounds, alternately, conditions, report
from cudd_core.compute.graphs import Recorded
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.models.committee import Committee
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.descend import descend
from cudd_core.seeding import host_rng, torch_rng

CASES = (("convnet3", 100), ("convnet3", 10), ("resnet18", 100))
LIMIT = {"cpu": 1.15, "cuda": 1.10}
FASTER = {"cpu": 2.0, "cuda": 5.0}
SIZE, CLASSES = 32, 100
SLOW = 20
"""Steps at a time, on a GPU, of what is launched kernel by kernel."""


def main() -> int:
    """Measure, print, write."""
    parser = arguments(__doc__, "device", "amp", "convolution", "threads", "seed", cases=CASES, seconds=50)
    parser.add_argument("--no-reference", action="store_true")
    options = parser.parse_args()
    compute = ComputeConfig(
        device=options.device, amp=options.amp, threads=options.threads, convolution=options.convolution
    )
    settings = conditions(options.seed, options.threads, options.device)
    settings |= {"amp": options.amp, "convolution": options.convolution}
    rows = []
    for arch, batch in options.case or CASES:
        rounds, steps = measure(arch, batch, Runtime(compute), options.seed, options.seconds, options.no_reference)
        overhead = rounds.ratio("ours", "bare")
        claimed = overhead if options.device == "cpu" else rounds.ratio("ours", "torch")
        row = {
            "networks, batch": f"{arch}, {batch}",
            "ours, ms a step": rounds.seconds("ours").scaled(1000 / steps),
            "ours ÷ bare": overhead,
            "by CPU seconds": rounds.cpu_ratio("ours", "bare"),
            "holds": claimed.median <= LIMIT[options.device],
        }
        if options.device == "cuda":
            row |= {
                "ours ÷ torch's layers": claimed,
                "ours ÷ eager": rounds.ratio("ours", "eager", SLOW / steps),
            }
        if not options.no_reference:
            gain = rounds.ratio("reference", "ours", 1 if options.device == "cpu" else steps / SLOW)
            row |= {"reference ÷ ours": gain}
            if options.device == "cpu":
                row |= {"CPU seconds": rounds.cpu_ratio("reference", "ours")}
                gain = rounds.ratio("script", "ours")
                row |= {"script ÷ ours": gain}
            row |= {"holds too": gain.median >= FASTER[options.device]}
        rows.append(row | {"n": overhead.n, "machine busy": rounds.busy})
    report("Synthesis step against bare networks and against the reference loop", rows, settings, options.json)
    return 0


def measure(
    arch: str, batch: int, runtime: Runtime, seed: int, seconds: float, no_reference: bool
) -> tuple[Rounds, int]:
    """Return the times of a few steps each way, and how many steps that is."""
    cuda = runtime.device.type == "cuda"
    if cuda:
        steps = 1000 if arch.startswith("convnet") else 300
    else:
        steps = max(2, min(20, 300 // batch)) if arch.startswith("convnet") else 2
    config = SynthesisConfig(iterations=steps, batch_size=batch, log_every=1000)
    originals, labels, normalizer = batch_of(batch, seed, runtime.device)
    slices = torch.arange(batch) // CLASSES
    start = normalizer(originals)
    teacher, student = (runtime.network(freeze_batchnorm(network(arch, number))) for number in (0, 1))
    pixels = runtime.images(start).clone(memory_format=torch.channels_last).requires_grad_()
    ones = torch.ones(batch, CLASSES, device=runtime.device)

    def passes(networks: Sequence[nn.Module], times: int, recorded: bool) -> Callable[[], None]:
        def step() -> tuple[Tensor, ...]:
            pixels.grad = None
            with runtime.autocast():
                answers: list[Tensor] = [each(pixels) for each in networks]
            torch.autograd.backward(answers, [ones.to(answer.dtype) for answer in answers])
            return ()

        made = Recorded(step, runtime.device, recorded)

        def body() -> None:
            for _ in range(times):
                made()

        return body

    with ExitStack() as stack:
        watched = [runtime.network(freeze_batchnorm(network(arch, number))) for number in (0, 1)]
        objective = CuddObjective(Committee([watched[0]], [arch]), watched[1], config, runtime, stack)

        def ours() -> None:
            descend(objective, originals, labels, slices, normalizer, seed, runtime)

        bodies: dict[str, Callable[[], object]] = {"ours": ours, "bare": passes([teacher, student], steps, True)}
        if cuda:
            plain = [
                network(arch, number).to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
                for number in (0, 1)
            ]
            bodies |= {"torch": passes(plain, steps, True), "eager": passes(plain, SLOW, False)}
        if not no_reference:
            bodies["reference"] = reference_steps(arch, batch, SLOW if cuda else steps, seed, runtime.device, config)
            if runtime.device.type == "cpu":
                bodies["script"] = stack.enter_context(Script(arch, batch, steps, seed, config))
        return alternately(bodies, seconds=seconds, device=runtime.device.type), steps


def batch_of(batch: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Normalizer]:
    """Return random originals uint8 [batch, 3, SIZE, SIZE], their labels, and the normaliser."""
    originals = torch.randint(0, 256, (batch, 3, SIZE, SIZE), generator=torch_rng(seed, "pixels"), dtype=torch.uint8)
    return originals, torch.arange(batch) % CLASSES, Normalizer((0.49, 0.48, 0.45), (0.25, 0.24, 0.26), device)


def network(arch: str, number: int) -> nn.Module:
    """Return a frozen network with weights of its own."""
    return build_network(arch, CLASSES, 3, SIZE, number).eval().requires_grad_(False)


def reference_steps(
    arch: str, batch: int, steps: int, seed: int, device: torch.device, config: SynthesisConfig
) -> Callable[[], None]:
    """Return the body that makes `steps` steps of the reference loop."""
    originals, labels, normalizer = batch_of(batch, seed, device)
    low, high = ((bound - normalizer.mean.flatten()) / normalizer.std.flatten() for bound in (0, 1))
    plain = [network(arch, number).to(device) for number in (0, 1)]
    loop = ReferenceLoop(plain[0], plain[1], normalizer(originals), labels.to(device), low, high, config)
    stream = views(config, SIZE, host_rng(seed, "views"))

    def body() -> None:
        for _ in range(steps):
            loop.step(next(stream))

    return body


class Script:
    """The reference loop in another process, with the allocator as the system has it; a body for `alternately`."""

    def __init__(self, *settings: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._ask, answer = context.Pipe()
        self._process = context.Process(target=_serve, args=(answer, torch.get_num_threads(), settings), daemon=True)

    def __enter__(self) -> Script:
        self._process.start()
        return self

    def __call__(self) -> float:
        """Make the steps; return the CPU seconds that they took there."""
        self._ask.send(True)
        return float(self._ask.recv())

    def __exit__(self, *_: object) -> None:
        self._ask.send(False)
        self._process.join()


def _serve(answer: Connection, threads: int, settings: tuple[Any, ...]) -> None:
    torch.set_num_threads(threads)
    arch, batch, steps, seed, config = settings
    body = reference_steps(arch, batch, steps, seed, torch.device("cpu"), config)
    while answer.recv():
        before = time.process_time()
        body()
        answer.send(time.process_time() - before)


if __name__ == "__main__":
    raise SystemExit(main())
