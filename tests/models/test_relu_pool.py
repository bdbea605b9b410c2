"""ReLU and average pooling in one layer: torch's own two layers, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, relu

from cudd_core.models.relu_pool import ReluPool


def batch(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x.index_fill(0, torch.tensor([0]), 0.0)  # where ReLU has no gradient of its own


@pytest.mark.parametrize("shape", [(3, 5, 8, 6), (2, 4, 7, 8), (2, 4, 7, 3), (1, 1, 2, 2)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_two_layers(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype
) -> None:
    ours, theirs = (batch(*shape, dtype=dtype).to(memory_format=layout).requires_grad_() for _ in range(2))
    pooled, expected = ReluPool()(ours), avg_pool2d(relu(theirs), 2)
    assert torch.equal(pooled, expected)
    weights = batch(*pooled.shape, dtype=dtype) + 1
    pooled.backward(weights)
    expected.backward(weights)
    assert ours.grad is not None and theirs.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert ours.grad.is_contiguous(memory_format=layout)


def test_it_can_be_differentiated_twice() -> None:
    x = batch(2, 3, 4, 4, dtype=torch.float64).add(0.1).requires_grad_()
    assert torch.autograd.gradgradcheck(ReluPool(), (x,))
