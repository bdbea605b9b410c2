"""Adaptive pooling as products: torch's values and gradients, on any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cudd_core.compute.gpu.adaptive_pool import RepeatableAdaptivePool, use_repeatable_pools
from cudd_core.models.registry import build_network


@pytest.mark.parametrize("size", [(7, 7), (6, 6), (3, None), (1, 4)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (7, 7), (8, 13)])
def test_values_and_gradients_are_torch_s(size: tuple[int, int | None], shape: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    found, wanted = RepeatableAdaptivePool(*size)(images), nn.AdaptiveAvgPool2d(size)(images)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    weights = torch.randn_like(found)
    gradients = [torch.autograd.grad((pooled * weights).sum(), images)[0] for pooled in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_means_are_rounded_once_and_without_bias_under_autocast(dtype: torch.dtype) -> None:
    images = torch.rand(50, 3, 13, 13, generator=torch.Generator().manual_seed(0)).to(dtype)
    for size in range(1, 13):
        with torch.autocast("cpu", torch.bfloat16):
            found = RepeatableAdaptivePool(size, size)(images)
        wanted = nn.AdaptiveAvgPool2d(size)(images.double())
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=torch.finfo(dtype).eps / 2 + 1e-6, atol=0)
        assert float(found.double().mean()) == pytest.approx(float(wanted.mean()), rel=5e-4)


def test_only_pools_to_more_than_one_value_are_replaced() -> None:
    vgg, resnet = (build_network(f"torchvision/{name}", 4, 3, 32, seed=0) for name in ("vgg11", "resnet18"))
    before, images = vgg.eval().state_dict().keys(), torch.randn(2, 3, 32, 32)
    wanted = vgg(images)
    for network in (vgg, resnet):
        use_repeatable_pools(network)
    assert [type(pool) for pool in (vgg.avgpool, resnet.avgpool)] == [RepeatableAdaptivePool, nn.AdaptiveAvgPool2d]
    assert vgg.state_dict().keys() == before
    torch.testing.assert_close(vgg(images), wanted)
