"""Views made on a GPU are those that the host makes, up to rounding, and each as if it were made alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cudd_core.compute.gpu.kernels import gpu_kernels
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.compute.transfer import upload_together
from cudd_core.data import replay
from cudd_core.data.augment import Crops, Mixes, draw_mixes, mixes_of, sample_crops
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.replay import Replay, ReplayConfig, Views
from cudd_core.records import NetworkSpec, SyntheticSet
from cudd_core.seeding import host_rng

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
COUNTS = (16, 16, 5)

Mix = Literal["cutmix", "mixup", "none"]
MIXES: list[Mix] = ["cutmix", "mixup", "none"]


def random_pixels(n: int, channels: int, size: int) -> Tensor:
    return torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)
    )


def made(pixels: Tensor, rows: Tensor, crops: Crops, mixes: Mixes | None) -> Tensor:
    """The kernel's views, on the host."""
    from cudd_core.compute.gpu.views import make_views

    normalizer = Normalizer(MEAN[: pixels.shape[1]], STD[: pixels.shape[1]], "cuda")
    arrays: list[NDArray[Any]] = [crops.boxes, crops.mirrored]
    if mixes is not None:
        arrays += [mixes.partner, mixes.batch, mixes.boxes, mixes.keep]
    on_gpu = upload_together([rows, *map(torch.from_numpy, arrays)], "cuda")
    mixing = (on_gpu[3], on_gpu[4], on_gpu[5], on_gpu[6]) if mixes is not None else None
    crop = (on_gpu[0], on_gpu[1], on_gpu[2])
    images = make_views(pixels.cuda(), (normalizer.mean, normalizer.std), crop, mixing)
    assert images.dtype == torch.float32 and images.is_contiguous(memory_format=torch.channels_last)
    return images.cpu()


def test_tensors_that_are_uploaded_together_arrive_as_they_were() -> None:
    tensors = [torch.arange(5), torch.rand(3, 7), torch.tensor([True, False, True]), torch.rand(2, dtype=torch.float64)]
    for sent, there in zip(tensors, upload_together(tensors, "cuda"), strict=True):
        assert there.is_cuda and there.dtype == sent.dtype and torch.equal(there.cpu(), sent)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32, 33])
def test_views_are_those_of_float64_on_the_host(size: int, channels: int, flip: bool, mix: Mix) -> None:
    n, pixels, rng = sum(COUNTS), random_pixels(20, channels, size), host_rng(size, mix, int(flip))
    rows = torch.from_numpy(rng.integers(0, 20, n))
    crops = sample_crops(n, size, (0.08, 1.0), flip, rng)
    # A whole image, single pixels in the middle and in the last corner, a line.
    crops.boxes[:4] = (0, 0, size, size), (5, 9, 1, 1), (size - 1, size - 1, 1, 1), (3, 0, 1, size)
    mixes = None if mix == "none" else mixes_of([draw_mixes(mix, count, size, 1.0, rng) for count in COUNTS], size)
    normalised = Normalizer(MEAN[:channels], STD[:channels])(pixels[rows])
    expected = crops.warp(size)(normalised.double())
    expected = expected if mixes is None else mixes(expected)
    found = made(pixels, rows, crops, mixes)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6 / min(STD))
    if mixes is None:
        whole = normalised[0].flip(-1) if crops.mirrored[0] else normalised[0]
        assert torch.equal(found[0], whole)


@pytest.mark.parametrize("mix", MIXES)
def test_the_bits_of_a_batch_do_not_depend_on_others(mix: Mix) -> None:
    size, pixels, rng = 32, random_pixels(20, 3, 32), host_rng(0, mix)
    rows = torch.from_numpy(rng.integers(0, 20, sum(COUNTS)))
    crops = sample_crops(sum(COUNTS), size, (0.08, 1.0), True, rng)
    draws = [] if mix == "none" else [draw_mixes(mix, count, size, 1.0, rng) for count in COUNTS]
    together = made(pixels, rows, crops, mixes_of(draws, size) if draws else None)
    start = 0
    for batch, count in enumerate(COUNTS):
        part = slice(start, start + count)
        alone = Crops(crops.boxes[part], crops.mirrored[part])
        mixes = mixes_of(draws[batch : batch + 1], size) if draws else None
        assert torch.equal(made(pixels, rows[part], alone, mixes), together[part])
        start = part.stop


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("built", [True, False])
@pytest.mark.parametrize("resident", [True, False])
def test_a_replay_is_the_host_s(mix: Mix, resident: bool, built: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the set stays on the host, and where the kernel cannot be built."""
    assert gpu_kernels("views") is not None
    if not built:
        monkeypatch.setattr(replay, "gpu_kernels", lambda name: None)
    if not resident:
        monkeypatch.setattr(replay, "RESIDENT_BYTES", 0)
    spec = NetworkSpec("convnet3", 3, 4, 32, MEAN, STD, ("a", "b", "c", "d"))
    numbers = torch.arange(21)
    synthetic = SyntheticSet(
        random_pixels(21, 3, 32), numbers % 4, numbers // 4, numbers, torch.zeros_like(numbers), spec.class_names
    )
    config = ReplayConfig(mix=mix)
    one, other = (
        Replay(synthetic, spec, config, 8, 0, Runtime(ComputeConfig(device=device))) for device in ("cuda", "cpu")
    )
    assert one.pixels.is_cuda == resident
    for epoch in range(3):
        for found, due in zip(batches(one.views(epoch), epoch), batches(other.views(epoch), epoch), strict=True):
            assert found[0].is_cuda and found[0].stride() == due[0].stride()
            torch.testing.assert_close(found[0].cpu(), due[0], rtol=0, atol=1e-5)
            for ours, theirs in zip(found[1:], due[1:], strict=True):
                assert ours.dtype == theirs.dtype
                np.testing.assert_array_equal(ours.cpu().numpy(), theirs.numpy())


def batches(every: Iterator[Views], epoch: int) -> list[tuple[Tensor, ...]]:
    return [batch for views in every for batch in views.batches(epoch)]
