"""L_bn of Eq. 4."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from cudd_core.losses.bn_alignment import JointAlignment, Statistics, bn_alignment

WIDTHS = (3, 5, 4)
Align = Callable[..., Tensor]


def joint(batch: Statistics, target: Statistics, first_factor: float = 1.0) -> Tensor:
    return JointAlignment(target, first_factor)(batch)


both = pytest.mark.parametrize("align", [bn_alignment, joint])


def statistics(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return torch.randn(width, generator=generator, dtype=torch.float64)

    return [(draw(width), draw(width).square()) for width in WIDTHS]


def pairs(flat: tuple[Tensor, ...]) -> Statistics:
    return list(zip(flat[0::2], flat[1::2], strict=True))


@both
@pytest.mark.parametrize("factor", [1.0, 10.0])
def test_gradient_against_finite_differences(align: Align, factor: float) -> None:
    flat = tuple(t.requires_grad_() for pair in statistics(0) for t in pair)
    assert gradcheck(lambda *batch: align(pairs(batch), statistics(1), factor), flat)


@both
def test_equals_the_sum_of_norms_layer_by_layer(align: Align) -> None:
    batch, target = statistics(0), statistics(1)
    weights = [10, 1, 1]
    expected = sum(
        weight * (np.linalg.norm((m - tm).numpy()) + np.linalg.norm((v - tv).numpy()))
        for weight, (m, v), (tm, tv) in zip(weights, batch, target, strict=True)
    )
    assert float(align(batch, target, 10.0)) == pytest.approx(float(expected), rel=1e-12)


@both
def test_the_first_factor_weighs_the_first_layer_alone(align: Align) -> None:
    batch, target = statistics(0), statistics(1)
    first = align(batch[:1], target[:1])
    torch.testing.assert_close(align(batch, target, 10.0) - align(batch, target), 9 * first)
    torch.testing.assert_close(align(batch, target, 0.0), align(batch[1:], target[1:]))


@both
def test_zero_when_the_statistics_agree_with_a_zero_gradient_there(align: Align) -> None:
    batch = [(m.requires_grad_(), v.requires_grad_()) for m, v in statistics(0)]
    value = align(batch, statistics(0), 10.0)
    gradients = torch.autograd.grad(value, [t for pair in batch for t in pair])
    assert float(value.detach()) == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@both
def test_norms_are_not_squared(align: Align) -> None:
    batch, target = statistics(0), statistics(1)
    half = [((m + tm) / 2, (v + tv) / 2) for (m, v), (tm, tv) in zip(batch, target, strict=True)]
    torch.testing.assert_close(align(half, target), align(batch, target) / 2)


@both
def test_layers_must_correspond(align: Align) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"argument 2 is shorter|size"):
        align(statistics(0), statistics(1)[:2])
