"""L_reg."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from cudd_core.losses.alignment import alignment


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (3, 7)])
def test_gradient_and_value(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.randn(shape, generator=generator, dtype=torch.float64)
    assert gradcheck(lambda x: alignment(x, b), (a,))
    value = alignment(a, b)
    torch.testing.assert_close(value, (a - b).square().sum() / a.numel())
    (gradient,) = torch.autograd.grad(value, a)
    torch.testing.assert_close(gradient, 2 * (a - b) / a.numel())


def test_zero_only_where_both_agree() -> None:
    a = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert float(alignment(a, a.clone())) == 0
    b = a.clone()
    b[1, 2, 3, 3] += 1
    assert float(alignment(a, b)) == pytest.approx(1 / a.numel())
