"""L_bn of Eq. 4."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from cudd_core.losses.bn_alignment import Statistics, bn_alignment

WIDTHS = (3, 5, 4)


def statistics(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(width, generator=generator, dtype=torch.float64)

    return [(draw(width), draw(width).square()) for width in WIDTHS]


def pairs(flat: tuple[Tensor, ...]) -> Statistics:
    return list(zip(flat[0::2], flat[1::2], strict=True))


@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_gradient_against_finite_differences(factor: float) -> None:
    flat = tuple(t.requires_grad_() for pair in statistics(0) for t in pair)
    assert gradcheck(lambda *batch: bn_alignment(pairs(batch), statistics(1), factor), flat)


def test_equals_the_sum_of_norms_layer_by_layer() -> None:
    batch, target = statistics(0), statistics(1)
    weights = [10, 1, 1]
    expected = sum(
        weight * (np.linalg.norm((m - tm).numpy()) + np.linalg.norm((v - tv).numpy()))
        for weight, (m, v), (tm, tv) in zip(weights, batch, target, strict=True)
    )
    assert float(bn_alignment(batch, target, 10.0)) == pytest.approx(float(expected), rel=1e-12)


def test_the_first_factor_weighs_the_first_layer_alone() -> None:
    batch, target = statistics(0), statistics(1)
    first = bn_alignment(batch[:1], target[:1])
    torch.testing.assert_close(bn_alignment(batch, target, 10.0) - bn_alignment(batch, target), 9 * first)
    torch.testing.assert_close(bn_alignment(batch, target, 0.0), bn_alignment(batch[1:], target[1:]))


def test_zero_when_the_statistics_agree_with_a_zero_gradient_there() -> None:
    batch = [(m.requires_grad_(), v.requires_grad_()) for m, v in statistics(0)]
    value = bn_alignment(batch, statistics(0), 10.0)
    gradients = torch.autograd.grad(value, [t for pair in batch for t in pair])
    assert float(value.detach()) == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_norms_are_not_squared() -> None:
    batch, target = statistics(0), statistics(1)
    half = [((m + tm) / 2, (v + tv) / 2) for (m, v), (tm, tv) in zip(batch, target, strict=True)]
    torch.testing.assert_close(bn_alignment(half, target), bn_alignment(batch, target) / 2)


def test_layers_must_correspond() -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"argument 2 is shorter|size"):
        bn_alignment(statistics(0), statistics(1)[:2])
