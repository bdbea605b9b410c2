"""BatchNorm and what follows it in one pass: torch's layers one after the other say what is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d, batch_norm, relu

from cudd_core.compute.cpu.batchnorm import After, Layer, fits, normalise, normalise_and_look

pytestmark = pytest.mark.skipif(not fits(torch.zeros(1, 8, 1, 1)), reason="no C compiler")


def layer(channels: int, dtype: torch.dtype = torch.float64, distance: float = 1.0) -> Layer:
    """Running statistics, `distance` from those of a batch, weight, bias and ε."""
    generator = torch.Generator().manual_seed(1)
    mean, spread, weight, bias = (torch.randn(channels, generator=generator, dtype=dtype) for _ in range(4))
    return Layer((distance * mean, spread.square() + 0.5), weight, bias, 1e-3)


def batch(n: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Features, and others to join."""
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(n, channels, height, width, generator=generator, dtype=dtype) for _ in range(2))
    x, beside = (each.contiguous(memory_format=torch.channels_last).requires_grad_() for each in made)
    return x, beside


def expected(x: Tensor, of: Layer, after: After, beside: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What torch's layers give, and the batch's statistics."""
    (mean, variance), weight, bias, eps = of
    y = batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
    if after is After.JOIN:
        assert beside is not None
        y = y + beside
    if after is not After.NOTHING:
        y = relu(y)
    if after is After.POOL:
        y = avg_pool2d(y, 2)
    own_variance, own_mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    return y, own_mean, own_variance


def gradients(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in outputs]
    return torch.autograd.grad(outputs, inputs, directions, retain_graph=True)


SIDES = st.integers(1, 7)


@pytest.mark.parametrize("after", After)
@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 3), channels=st.sampled_from((4, 8, 20)), height=SIDES, width=SIDES)
def test_it_is_the_layers_one_after_the_other(after: After, n: int, channels: int, height: int, width: int) -> None:
    if after is After.POOL and min(height, width) < 2:
        height, width = height + 1, width + 1
    x, others = batch(n, channels, height, width)
    beside = others if after is After.JOIN else None
    inputs = [x] if beside is None else [x, beside]
    of = layer(channels)
    wanted = expected(x, of, after, beside)
    alone, found = normalise(x, of, after, beside), normalise_and_look(x, of, after, beside)
    torch.testing.assert_close(found, wanted)
    assert torch.equal(alone, found[0])
    torch.testing.assert_close(gradients([alone], inputs), gradients(wanted[:1], inputs))
    torch.testing.assert_close(gradients(found, inputs), gradients(wanted, inputs))


@pytest.mark.parametrize("after", After)
def test_gradients_against_finite_differences(after: After) -> None:
    x, others = batch(2, 4, 3, 5)
    inputs = (x, others) if after is After.JOIN else (x,)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        return normalise_and_look(values[0], layer(4), after, *values[1:])

    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.usefixtures("pool")
def test_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, others = batch(7, 24, 5, 6, torch.float32)

    def results(count: int) -> tuple[Tensor, ...]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)
        found = normalise_and_look(x, layer(24, torch.float32), After.JOIN, others)
        return *found, *gradients(found, (x, others))

    for one, three in zip(results(1), results(3), strict=True):
        assert torch.equal(one, three)


def test_an_image_has_the_same_bits_among_any_others() -> None:
    x, _ = batch(9, 16, 5, 6, torch.float32)
    every = normalise(x, layer(16, torch.float32), After.POOL)
    assert torch.equal(normalise(x[3:5], layer(16, torch.float32), After.POOL), every[3:5])


def test_layouts_do_not_matter() -> None:
    x, others = batch(3, 8, 4, 5)
    direction = torch.randn(3, 8, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    results = []
    for layout in (torch.channels_last, torch.contiguous_format):
        given = (x.contiguous(memory_format=layout), others.contiguous(memory_format=layout))
        y = normalise(given[0], layer(8), After.JOIN, given[1])
        results.append((y, *torch.autograd.grad(y, (x, others), direction.contiguous(memory_format=layout))))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_what_comes_out_may_be_changed_in_place() -> None:
    """As torchvision's networks do: they add a shortcut, then let ReLU pass."""
    x, others = batch(2, 8, 4, 4)
    found, wanted = normalise(x, layer(8)), normalise(x, layer(8), After.JOIN, others)
    found += others
    found = torch.relu_(found)
    assert torch.equal(found, wanted)
    for mine, theirs in zip(gradients([found], [x, others]), gradients([wanted], [x, others]), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("distance", "error"), [(1.0, 1e-6), (30.0, 1e-4)])
def test_float32_statistics(distance: float, error: float) -> None:
    """Sums of squares are about the running mean; one that is 30 standard deviations off costs two digits."""
    x, _ = batch(100, 8, 32, 32, torch.float32)
    _, mean, variance = normalise_and_look(x, layer(8, torch.float32, distance))
    own_variance, own_mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), own_mean, rtol=0, atol=error)
    torch.testing.assert_close(variance.double(), own_variance, rtol=error, atol=0)


@pytest.mark.parametrize("after", [After.RELU, After.POOL, After.JOIN])
def test_what_is_not_a_number_is_passed_on_as_by_relu(after: After) -> None:
    x, others = batch(1, 8, 4, 4, torch.float32)
    with torch.no_grad():
        x[0, 3, 1, 1] = float("nan")
    y = normalise(x, layer(8, torch.float32), after, others if after is After.JOIN else None)
    assert y.isnan().sum() == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda x: normalise(x, layer(16)),
        lambda x: normalise(x, layer(8), After.JOIN, x[:1]),
        lambda x: normalise(x, layer(8), After.JOIN, x.float()),
    ],
    ids=["channels", "shape", "type"],
)
def test_what_does_not_fit_together_is_refused(call: Callable[[Tensor], Any]) -> None:
    with pytest.raises(ValueError, match="are normalised"):
        call(batch(2, 8, 3, 3)[0])


def test_a_second_derivative_is_refused_and_not_silently_wrong() -> None:
    x, _ = batch(1, 4, 3, 3)
    (gradient,) = torch.autograd.grad(normalise(x, layer(4)).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 12, 4, 4),
        torch.zeros(1, 2, 4, 4, dtype=torch.float64),
        torch.zeros(1, 8, 4, 4).bfloat16(),
        torch.zeros(0, 8, 4, 4),
        torch.zeros(8, 4, 4),
        torch.zeros(1, 8, 4, 4, device="meta"),
    ],
    ids=["channels", "few channels", "half", "none", "one image", "device"],
)
def test_what_the_code_cannot_read_does_not_fit(x: Tensor) -> None:
    assert not fits(x)
