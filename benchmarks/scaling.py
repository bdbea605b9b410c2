"""How cost and memory of synthesis grow: classes, pixels, slices.

    python benchmarks/scaling.py                            quick points: to 1000 classes, 128 px, 50 slices
    python benchmarks/scaling.py --full                     to 10,450 classes and 224 px
    python benchmarks/scaling.py --json FILE --plot FILE.png

Every point is a process of its own, which synthesises shards of one class block (100 classes at most, batch 10, with
teacher and student) by `cudd_core.stages.synthesize`, and says how much CPU time an image took and by how much its
resident set grew at most. The data set is a split that makes an image when it is asked for, so what grows is ours.
Points of a sweep take turns, round after round.

- classes: ResNet-18, 32 px; time per image is to stay flat.
- pixels: ConvNet-3; time per pixel is to stay flat.
- slices: ConvNet-3; memory is to grow by no more than the finished images.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.arguments import arguments
from benchmarks.timing import Spread, conditions, report

Point = dict[str, Any]
BASE: Point = {"arch": "convnet3-w32", "classes": 10, "size": 32, "slices": 1, "iterations": 12}
QUICK: dict[str, list[Point]] = {
    "classes": [{"arch": "resnet18", "classes": n, "iterations": 2, "batches": 2} for n in (10, 100, 1000)],
    "pixels": [{"size": side} for side in (32, 64, 128)],
    "slices": [{"slices": n, "iterations": 1} for n in (1, 10, 50)],
}
FULL: dict[str, list[Point]] = {
    "classes": [*QUICK["classes"], {"arch": "resnet18", "classes": 10450, "iterations": 2, "batches": 2}],
    "pixels": [*QUICK["pixels"], {"size": 224}],
    "slices": [*QUICK["slices"], {"slices": 200, "iterations": 1}],
}
BATCH = 10


def main() -> int:
    """Measure, print, write, draw."""
    parser = arguments(__doc__, "seed")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child))))
        return 0
    settings = conditions(options.seed)
    rows = []
    for sweep, points in (FULL if options.full else QUICK).items():
        rows += measure(sweep, [BASE | point | {"seed": options.seed} for point in points], options.rounds)
    report("Cost of synthesis as the task grows", rows, settings, options.json)
    if options.plot:
        draw(rows, options.plot)
    return 0


def measure(sweep: str, points: list[Point], rounds: int) -> list[dict[str, Any]]:
    """Return a row a point."""
    found: list[list[Point]] = [[] for _ in points]
    for _ in range(rounds):
        for results, point in zip(found, points, strict=True):
            command = [sys.executable, __file__, "--child", json.dumps(point)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for results, point in zip(found, points, strict=True):
        rows.append(
            {
                "sweep": sweep,
                "value": point["size"] if sweep == "pixels" else point[sweep],
                "network": point["arch"],
                "CPU ms an image and step": Spread.of([1e3 * r["seconds"] / r["image_steps"] for r in results]),
                "CPU ns a pixel and step": Spread.of(
                    [1e9 * r["seconds"] / r["image_steps"] / point["size"] ** 2 for r in results]
                ),
                "memory, MB": Spread.of([r["bytes"] / 1e6 for r in results]),
                "images made, MB": results[0]["image_bytes"] / 1e6,
                "n": rounds,
            }
        )
    return rows


def child(point: Point) -> Point:
    """Synthesise, and return CPU seconds, image-steps and bytes."""
    import torch

    from cudd_core.compute.runtime import ComputeConfig, Runtime
    from cudd_core.models.registry import build_network
    from cudd_core.objectives.configuration import SynthesisConfig
    from cudd_core.records import NetworkRecord, NetworkSpec, Selection
    from cudd_core.stages.synthesize import synthesize

    classes, size, slices, seed = point["classes"], point["size"], point["slices"], point["seed"]
    names = tuple(f"class {k}" for k in range(classes))
    spec = NetworkSpec(point["arch"], classes, 3, size, (0.5,) * 3, (0.25,) * 3, names)
    teacher, student = (
        NetworkRecord(spec, build_network(spec.arch, classes, 3, size, number).state_dict()) for number in (0, 1)
    )
    # The last block of the run, cut to a few batches: what a step costs does not depend on how many follow.
    block = torch.arange(classes)[-min(100, classes, BATCH * point.get("batches", 1)) :]
    indices = (torch.arange(slices)[:, None] * classes + block).to(torch.int64)
    selection = Selection(block, 0, indices, torch.zeros_like(indices))
    config = SynthesisConfig(iterations=point["iterations"], batch_size=BATCH)
    split: Any = MadeSplit(classes, size)
    runtime = Runtime(ComputeConfig())

    def run(config: SynthesisConfig, number: int) -> None:
        synthesize(teacher, student, selection, range(number), split, 2, config, seed, runtime)

    run(config.model_copy(update={"iterations": 1}), 1)
    before = resident_bytes()
    forget_peak()
    started = time.process_time()
    run(config, slices)
    seconds = time.process_time() - started
    images = slices * len(block)
    return {
        "seconds": seconds,
        "image_steps": images * config.iterations,
        "bytes": peak_bytes() - before,
        "image_bytes": images * 3 * size**2,
    }


@dataclass(frozen=True)
class MadeSplit:
    """Images made from their index when they are asked for."""

    classes: int
    size: int

    def images(self, indices: Any) -> Any:
        """Return uint8 [n, 3, size, size]."""
        import torch

        from cudd_core.seeding import torch_rng

        made = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        for row, index in enumerate(indices.tolist()):
            made[row] = torch.randint(0, 256, made.shape[1:], generator=torch_rng(index, "made"), dtype=torch.uint8)
        return made


def resident_bytes() -> int:
    """Return this process's resident set."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def forget_peak() -> None:
    """Start the peak of the resident set anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes() -> int:
    """Return the peak of the resident set since `forget_peak`."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def draw(rows: list[dict[str, Any]], destination: Path) -> None:
    """Draw a panel a sweep: time per image, time per pixel, memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    # Memory grows by what the finished images take: a straight line over their number.
    panels = {
        "classes": ("CPU ms an image and step", "log", "classes"),
        "pixels": ("CPU ns a pixel and step", "log", "pixels a side"),
        "slices": ("memory, MB", "linear", "slices in one task"),
    }
    for axes, (sweep, (measured, scale, name)) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        chosen = [row for row in rows if row["sweep"] == sweep]
        values = [row[measured] for row in chosen]
        middle = [value.median for value in values]
        bars = [[v.median - v.low for v in values], [v.high - v.median for v in values]]
        sizes = [row["value"] for row in chosen]
        axes.errorbar(sizes, middle, yerr=bars, marker="o", capsize=3)
        axes.set(xscale=scale, ylim=(0, 1.3 * max(middle)), xlabel=name, ylabel=measured)
        axes.set_xticks(sizes, labels=[f"{size:,}" for size in sizes])
        axes.minorticks_off()
    destination.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(destination, dpi=120)


if __name__ == "__main__":
    raise SystemExit(main())
