"""KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from cudd_core.losses.soft_label import soft_label


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explicit(student: Tensor, teacher: Tensor, temperature: float) -> float:
    def softmax(z: Tensor) -> np.ndarray:
        e = np.exp(z.double().numpy() / temperature)
        return np.asarray(e / e.sum(1, keepdims=True))

    p, q = softmax(teacher), softmax(student)
    return float((p * np.log(p / q)).sum(1).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_gradient_against_finite_differences(temperature: float) -> None:
    assert gradcheck(lambda s: soft_label(s, logits(1), temperature), (logits(0).requires_grad_(),))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_equals_the_explicit_formula_without_the_square_of_t(temperature: float) -> None:
    value = float(soft_label(logits(0), logits(1), temperature))
    assert value == pytest.approx(explicit(logits(0), logits(1), temperature), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 20.0])
def test_gradient_is_the_difference_of_the_softmaxes(temperature: float) -> None:
    student, teacher = logits(0).requires_grad_(), logits(1)
    (gradient,) = torch.autograd.grad(soft_label(student, teacher, temperature), student)
    difference = (student / temperature).softmax(1) - (teacher / temperature).softmax(1)
    torch.testing.assert_close(gradient, difference / temperature / len(student), rtol=1e-5, atol=1e-8)


def test_direction_matters() -> None:
    """Not the reverse divergence."""
    assert abs(float(soft_label(logits(0), logits(1), 1.0)) - explicit(logits(1), logits(0), 1.0)) > 0.1


def test_zero_for_equal_logits_and_up_to_a_constant_per_row() -> None:
    student = logits(0).float()
    shift = torch.linspace(-5, 5, 6)[:, None]
    assert float(soft_label(student, student, 20.0)) == 0
    assert float(soft_label(student + shift, student, 2.0)) == pytest.approx(0, abs=1e-6)
    moved = soft_label(logits(0) + shift, logits(1) - 2 * shift, 2.0)
    torch.testing.assert_close(moved, soft_label(logits(0), logits(1), 2.0), rtol=1e-5, atol=1e-7)


@given(st.integers(0, 10_000), st.floats(0.5, 30))
def test_never_negative_beyond_rounding(seed: int, temperature: float) -> None:
    assert float(soft_label(logits(seed), logits(seed + 1), temperature)) > -1e-6


def test_repeating_the_batch_changes_nothing() -> None:
    twice = soft_label(logits(0).repeat(2, 1), logits(1).repeat(2, 1), 20.0)
    torch.testing.assert_close(twice, soft_label(logits(0), logits(1), 20.0))


def test_half_precision_teacher_logits_are_used_in_full_precision() -> None:
    student, teacher = logits(0).float(), logits(1).half()
    value = soft_label(student, teacher, 20.0)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(explicit(student, teacher, 20.0), rel=1e-4)
