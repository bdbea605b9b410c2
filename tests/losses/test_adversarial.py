"""L_adv of Eq. 7."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import cross_entropy, one_hot

from cudd_core.losses.adversarial import adversarial

LABELS = torch.tensor([0, 2, 1, 3, 3])
MASK = torch.tensor([True, False, True, True, False])


def logits(scale: float = 1.0, classes: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (scale * torch.randn(5, classes, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("mask", [None, MASK, torch.ones(5, dtype=torch.bool)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_gradient_against_finite_differences(mask: torch.Tensor | None, scale: float) -> None:
    assert gradcheck(lambda z: adversarial(z, LABELS, mask), (logits(scale),))


def test_equals_the_naive_formula_at_small_margins() -> None:
    z = logits()
    wrong = 1 - z.softmax(1)[torch.arange(5), LABELS]
    torch.testing.assert_close(adversarial(z, LABELS), -wrong.log().mean())


def test_two_classes_are_cross_entropy_with_the_other_class() -> None:
    z = logits(3.0, classes=2)
    labels = torch.tensor([0, 1, 1, 0, 1])
    torch.testing.assert_close(adversarial(z, labels), cross_entropy(z, 1 - labels))


@pytest.mark.parametrize("margin", [17.0, 40.0, 90.0, 1000.0])
def test_the_gradient_survives_a_large_margin_in_float32(margin: float) -> None:
    """∂/∂z_y = p_y / N and ∂/∂z_k = −p_y q_k / N, q the softmax over the other classes."""
    z = torch.tensor([[0.5, margin, -0.25, 0.0], [0.1, 0.2, 0.3, 0.4]], requires_grad=True)
    labels = torch.tensor([1, 0])
    value = adversarial(z, labels)
    value.backward()

    exact = z.detach().double()
    target = one_hot(labels, 4).bool()
    p = exact.softmax(1)[target][:, None]
    q = exact.masked_fill(target, float("-inf")).softmax(1)
    expected = torch.where(target, p, -p * q) / 2
    assert z.grad is not None
    torch.testing.assert_close(z.grad.double(), expected, rtol=1e-5, atol=1e-7)
    assert float(z.grad[0, 1]) == pytest.approx(0.5, abs=1e-6)
    others = exact[0][[0, 2, 3]].logsumexp(0)
    second = -(1 - p[1]).log()
    assert float(value.detach()) == pytest.approx(float((exact[0, 1] - others + second) / 2), rel=1e-5)


def test_descending_lowers_the_probability_of_the_label() -> None:
    z = logits()
    (gradient,) = torch.autograd.grad(adversarial(z, LABELS), z)
    moved = (z - gradient).softmax(1)[torch.arange(5), LABELS]
    assert bool((moved < z.softmax(1)[torch.arange(5), LABELS]).all())


def test_masked_images_get_exactly_no_gradient_and_still_count_in_n() -> None:
    z = logits(8.0)
    value = adversarial(z, LABELS, MASK)
    (gradient,) = torch.autograd.grad(value, z)
    assert bool((gradient[~MASK] == 0).all())
    assert bool((gradient[MASK] != 0).all())
    kept = adversarial(z[MASK], LABELS[MASK])
    torch.testing.assert_close(value, kept * 3 / 5)
    (whole,) = torch.autograd.grad(adversarial(z, LABELS), z)
    assert torch.equal(gradient[MASK], whole[MASK])


def test_a_batch_with_every_image_masked_is_zero_and_has_zero_gradient() -> None:
    z = (logits().detach().float() * 1e4).requires_grad_()
    value = adversarial(z, LABELS, torch.zeros(5, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(value, z)
    assert float(value.detach()) == 0 and torch.equal(gradient, torch.zeros_like(z))


def test_only_differences_of_logits_count() -> None:
    z = logits()
    torch.testing.assert_close(adversarial(z + torch.arange(5)[:, None] * 3, LABELS), adversarial(z, LABELS))
