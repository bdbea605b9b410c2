"""The device and its threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.errors import ResourceError


@pytest.fixture(autouse=True)
def _process_settings_restored() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_configured_number_of_threads_is_set(threads: int) -> None:
    torch.set_num_threads(4)
    Runtime(ComputeConfig(threads=threads))
    assert torch.get_num_threads() == threads


def test_a_worker_thread_gets_the_configured_number_too() -> None:
    torch.set_num_threads(1)

    def count() -> int:
        Runtime(ComputeConfig(threads=2))
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(count).result() == 2


@pytest.mark.parametrize("threads", [0, -1, 257])
def test_impossible_numbers_of_threads_are_refused(threads: int) -> None:
    with pytest.raises(ValidationError, match="threads"):
        ComputeConfig(threads=threads)


def test_cuda_where_there_is_none_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    with pytest.raises(ResourceError, match=r"compute\.device = cuda.*compute\.device=cpu"):
        Runtime(ComputeConfig(device="cuda", threads=threads + 1))
    assert torch.get_num_threads() == threads  # nothing was touched


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_kernels_as_configured(deterministic: bool) -> None:
    Runtime(ComputeConfig(deterministic=deterministic))
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(("amp", "dtype"), [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_autocast_as_configured(amp: str, dtype: torch.dtype) -> None:
    runtime = Runtime(ComputeConfig.model_validate({"amp": amp}))
    with runtime.autocast():
        assert nn.Linear(4, 2)(torch.ones(1, 4)).dtype == dtype


def test_networks_and_images_are_laid_out_channels_last() -> None:
    runtime = Runtime(ComputeConfig())
    network = runtime.network(nn.Conv2d(4, 5, 3))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 4, 4)
    moved = runtime.images(images)
    assert torch.equal(moved, images) and moved.is_contiguous(memory_format=torch.channels_last)
