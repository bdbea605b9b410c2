"""The GPU kernel that makes views, on a CPU by Triton's interpreter; tests/cuda has it on a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

VIEWS = """
from itertools import product

import numpy as np
import torch
from cudd_core.compute.gpu.views import check, make_views
from cudd_core.data.augment import Crops, draw_mixes, mixes_of, sample_crops
from cudd_core.data.normalizer import Normalizer
from cudd_core.seeding import host_rng

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def views(pixels, rows, crops, mixes, normalizer):
    boxes, mirrored = torch.from_numpy(crops.boxes), torch.from_numpy(crops.mirrored)
    normal = (normalizer.mean, normalizer.std)
    if mixes is None:
        return make_views(pixels, normal, (rows, boxes, mirrored))
    mixing = (mixes.partner, mixes.batch, mixes.boxes, mixes.keep)
    return make_views(pixels, normal, (rows, boxes, mirrored), tuple(map(torch.from_numpy, mixing)))


check(torch.device("cpu"))
for size, channels in product((28, 32, 33), (1, 3)):
    g = torch.Generator().manual_seed(size + channels)
    pixels = torch.randint(0, 256, (7, channels, size, size), dtype=torch.uint8, generator=g)
    normalizer = Normalizer(MEAN[:channels], STD[:channels])
    rows = torch.tensor([6, 0, 2, 2, 5, 1, 3])
    normalised = normalizer(pixels[rows]).double()
    for flip, kind in product((False, True), ("cutmix", "mixup", "none")):
        rng = host_rng(size, kind, int(flip))
        crops = sample_crops(7, size, (0.08, 1.0), flip, rng)
        # A whole image, single pixels in the middle and in the last corner, a line.
        crops.boxes[:4] = (0, 0, size, size), (5, 9, 1, 1), (size - 1, size - 1, 1, 1), (3, 0, 1, size)
        mixes = None if kind == "none" else mixes_of([draw_mixes(kind, n, size, 1.0, rng) for n in (4, 3)], size)
        expected = crops.warp(size)(normalised)
        expected = expected if mixes is None else mixes(expected)
        found = views(pixels, rows, crops, mixes, normalizer)
        assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 / min(STD))
        if mixes is None:
            whole = normalizer(pixels[rows])[0]
            assert torch.equal(found[0], whole.flip(-1) if crops.mirrored[0] else whole)
            for i in (0, 4, 6):
                alone = Crops(crops.boxes[i : i + 1], crops.mirrored[i : i + 1])
                assert torch.equal(views(pixels, rows[i : i + 1], alone, None, normalizer)[0], found[i])
print("the same")
"""

REPLAY = """
import torch
from cudd_core.compute.gpu import views as gpu_views
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.replay import Replay, ReplayConfig, draw_batches
from cudd_core.records import NetworkSpec, SyntheticSet

spec = NetworkSpec("convnet2-w4", 3, 3, 9, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), ("a", "b", "c"))
pixels = torch.randint(0, 256, (11, 3, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
numbers = torch.arange(11)
synthetic = SyntheticSet(pixels, numbers % 3, numbers // 3, numbers, 0 * numbers, spec.class_names)
for mix in ("cutmix", "mixup", "none"):
    config = ReplayConfig(mix=mix)
    replay = Replay(synthetic, spec, config, 4, 0, Runtime(ComputeConfig()))
    drawn = draw_batches(config, 0, ((0, 0, 4), (0, 1, 4), (0, 2, 3), (1, 0, 4)), 9)
    rows = torch.cat([replay.orders(range(1))[0], numbers[3:7]])
    images, *others = replay._made_by_kernel(gpu_views, rows, *drawn)
    due, *due_others = replay._made_by_torch(rows, *drawn)
    assert images.stride() == due.stride()
    torch.testing.assert_close(images, due, rtol=0, atol=1e-5)
    for other, due in zip(others, due_others, strict=True):
        assert (other is None and due is None) or (other.dtype == due.dtype and torch.equal(other, due))
print("the same")
"""


def test_views_are_those_that_the_cpu_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, to 2e-6 of the range of pixels, and to the bit for a whole image; each is as if made alone."""
    interpret(VIEWS, monkeypatch)


def test_a_replay_is_the_same_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """For several batches of different sizes, as `Replay` hands them to the kernel."""
    interpret(REPLAY, monkeypatch)


def interpret(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", body], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr
