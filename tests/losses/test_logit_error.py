"""Mean squared error of logits."""

from __future__ import annotations

import torch

from cudd_core.losses.logit_error import logit_error

GENERATOR = torch.Generator().manual_seed(0)


def test_value_and_gradient_are_those_of_the_formula() -> None:
    student = torch.randn(5, 3, dtype=torch.float64, generator=GENERATOR).requires_grad_()
    teacher = torch.randn(5, 3, generator=GENERATOR)
    value = logit_error(student, teacher)
    difference = student - teacher
    torch.testing.assert_close(value, difference.square().sum() / 15)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(gradient, 2 * difference / 15)


def test_stored_logits_may_be_float16() -> None:
    teacher = torch.randn(4, 3, generator=GENERATOR).half()
    assert float(logit_error(teacher.float(), teacher)) == 0
