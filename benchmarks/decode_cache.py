"""Reading a split without a cache of decoded images, while it is filled, and from it.

Writes JPEGs of noise into class folders, then times passes over all images, each in a process that has nothing open:
decoding at every use (as a split too large for memory), filling the cache in the source's order, and reading it. The
first and the last go in random order. Every pass must see the same pixels.

    python -m benchmarks.decode_cache                                   # 600 images of 64 px, seconds
    python -m benchmarks.decode_cache --images 5000 --size 224 --source-size 400 --repeats 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image

from cudd_core.data import decode_ahead, encoded, open_split
from cudd_core.data.source import DataConfig

_BATCH = 128


def write_images(root: Path, images: int, side: int, seed: int) -> None:
    """Write `images` JPEGs of smooth noise, quality 90, into ten class folders."""
    rng = np.random.default_rng(seed)
    for number in range(images):
        folder = root / "train" / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        data = BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
        (folder / f"{number:06}.jpg").write_bytes(data.getvalue())


def measure(config: DataConfig, decoded: Path | None, seed: int) -> dict[str, object]:
    """Time one pass in this process: `ahead` fills the cache in the source's order, `read` goes in random order."""
    encoded.MEMORY_LIMIT = 0  # as for a split that memory cannot hold
    split = open_split(config, "train", decoded)
    start = time.perf_counter()
    decode_ahead(split)
    between = time.perf_counter()
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(split)))
    sums = torch.zeros(len(split), dtype=torch.int64)
    for batch in order.split(_BATCH):
        sums[batch] = split.images(batch).flatten(1).sum(1, dtype=torch.int64)
    return {
        "ahead": between - start,
        "read": time.perf_counter() - between,
        "pixels": hashlib.sha256(sums.numpy().tobytes()).hexdigest(),
    }


def _in_a_process(config: DataConfig, decoded: Path | None, seed: int) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.decode_cache", "--pass", config.model_dump_json()]
    command += ["--decoded", str(decoded or ""), "--seed", str(seed)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def run(images: int, size: int, source_size: int, repeats: int, seed: int, folder: Path) -> dict[str, object]:
    """Return medians and spreads of seconds a pass, over `repeats` rounds of none → filling → from the cache."""
    write_images(folder / "data", images, source_size, seed)
    config = DataConfig(source="image_folder", root=str(folder / "data"), image_size=size)
    seconds: dict[str, list[float]] = {"decoding": [], "filling": [], "cached": []}
    pixels = set()
    for number in range(repeats):
        shutil.rmtree(folder / "decoded", ignore_errors=True)
        for name, decoded in (("decoding", None), ("filling", folder / "decoded"), ("cached", folder / "decoded")):
            found = _in_a_process(config, decoded, seed + number)
            pixels.add(found["pixels"])
            took = found["ahead"] if name == "filling" else found["read"]
            assert isinstance(took, float)
            seconds[name].append(took)
    if len(pixels) != 1:
        raise SystemExit("The passes did not see the same pixels.")
    return {
        "images": images,
        "size": size,
        "source_size": source_size,
        "repeats": repeats,
        "seed": seed,
        "seconds": {
            name: {"median": statistics.median(v), "min": min(v), "max": max(v)} for name, v in seconds.items()
        },
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "pillow": PIL.__version__,
    }


def main() -> None:
    """Parse the command line, run, print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=64, help="side in pixels that images are decoded to")
    parser.add_argument("--source-size", type=int, default=160, help="side of the JPEGs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pass", dest="one", default="", help=argparse.SUPPRESS)
    parser.add_argument("--decoded", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        config = DataConfig.model_validate_json(options.one)
        print(json.dumps(measure(config, Path(options.decoded) if options.decoded else None, options.seed)))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = run(*(options.images, options.size, options.source_size, options.repeats, options.seed), Path(folder))
    print(f"{'pass':10} {'median s':>10} {'min':>8} {'max':>8} {'images/s':>10}")
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    for name, value in seconds.items():
        rate = options.images / value["median"]
        print(f"{name:10} {value['median']:10.3f} {value['min']:8.3f} {value['max']:8.3f} {rate:10.0f}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
