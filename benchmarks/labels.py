"""Relabelling against the teacher's bare inference; bytes of labels, and how fast they are read.

    python benchmarks/labels.py                             ConvNet-3, batch 16 and 64
    python benchmarks/labels.py --case resnet18:64 --json FILE

`ours` is `cudd_core.stages.relabel` over four epochs, on a GPU over 200, whose views are drawn anew in every round;
`bare` is the inference of the same layers on as many batches of the same size that are there. On a GPU that is a CUDA
graph, `torch` is such a graph of torch's own layers, which the claim is about there. Bytes are those of the record as
it is stored, everything included; reading verifies digests, as every task does.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.arguments import arguments
from benchmarks.made import random_set
from benchmarks.timing import alternately, conditions, report
from cudd_core.codec import read_record, write_record
from cudd_core.compute.graphs import Recorded
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.replay import ReplayConfig
from cudd_core.labelling import Teaching
from cudd_core.models.registry import build_network, restore_network
from cudd_core.records import LabelShard, NetworkRecord
from cudd_core.seeding import torch_rng
from cudd_core.stages.relabel import relabel

CASES = (("convnet3", 16), ("convnet3", 64))
LIMIT = 0.85
SIZE, IMAGES = 32, 128
EPOCHS = {"cpu": 4, "cuda": 200}


def main() -> int:
    """Measure, print, write."""
    parser = arguments(__doc__, "device", "amp", "threads", "seed", cases=CASES, seconds=20)
    parser.add_argument("--classes", type=int, default=100)
    options = parser.parse_args()
    runtime = Runtime(ComputeConfig(device=options.device, amp=options.amp, threads=options.threads))
    settings = conditions(options.seed, options.threads, options.device) | {"classes": options.classes}
    rows = []
    for arch, batch in options.case or CASES:
        rows.append(measure(arch, batch, options.classes, runtime, options.seed, options.seconds))
    report("Relabelling, and its labels on disk", rows, settings, options.json)
    return 0


def measure(arch: str, batch: int, classes: int, runtime: Runtime, seed: int, seconds: float) -> dict[str, object]:
    """Return one row."""
    generator = torch_rng(seed, "set")
    spec, synthetic = random_set(arch, IMAGES, classes, SIZE, generator)
    teacher = NetworkRecord(spec, build_network(arch, classes, 3, SIZE, seed).state_dict())
    images = runtime.images(torch.randn(batch, 3, SIZE, SIZE, generator=generator))
    epochs = EPOCHS[runtime.device.type]
    seeds = itertools.count(seed)

    def ours() -> LabelShard:
        return relabel(Teaching(teacher), synthetic, range(epochs), batch, ReplayConfig(), next(seeds), runtime)

    found = ours()

    def inference(network: nn.Module) -> Callable[[], None]:
        @torch.no_grad()
        def answer() -> tuple[Tensor, ...]:
            with runtime.autocast():
                return (network(images),)

        recorded = Recorded(answer, runtime.device, True)

        def body() -> None:
            for _ in range(epochs * IMAGES // batch):
                recorded()

        return body

    bodies: dict[str, Callable[[], object]] = {
        "ours": ours,
        "bare": inference(runtime.network(restore_network(teacher))),
    }
    if runtime.device.type == "cuda":
        plain = build_network(arch, classes, 3, SIZE, seed).eval()
        bodies["torch"] = inference(plain.to(runtime.device, memory_format=torch.channels_last))  # type: ignore[call-overload]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "labels"
        manifest = write_record(found, folder)
        bodies["read"] = lambda: read_record(folder)
        rounds = alternately(bodies, seconds=seconds, device=runtime.device.type)
        stored = manifest.total_bytes
    share = rounds.ratio("bare", "ours")
    claimed, more = share, dict[str, object]()
    if "torch" in bodies:
        claimed = rounds.ratio("torch", "ours")
        more = {"share of torch's layers": claimed}
    return {
        "teacher, batch": f"{arch}, {batch}",
        "images a second": epochs * IMAGES / rounds.seconds("ours").median,
        "share of bare": share,
        **more,
        "by CPU seconds": rounds.cpu_ratio("bare", "ours"),
        "holds": claimed.median >= LIMIT,
        "bytes an image-epoch": stored / (epochs * IMAGES),
        "read, image-epochs a second": epochs * IMAGES / rounds.seconds("read").median,
        "n": share.n,
        "machine busy": rounds.busy,
    }


if __name__ == "__main__":
    raise SystemExit(main())
