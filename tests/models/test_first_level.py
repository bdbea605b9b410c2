"""A ConvNet's first level in one product: torch's layers, to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.models import first_level as module
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.convnet import ConvNet
from cudd_core.models.first_level import first_level, fits
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.relu_pool import ReluPool


def layers(c: int, k: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    generator = torch.Generator().manual_seed(0)
    convolution, norm = nn.Conv2d(c, k, 3, padding=1), nn.BatchNorm2d(k)
    with torch.no_grad():
        for value in (*convolution.parameters(), *norm.parameters(), norm.running_mean):
            assert value is not None
            value.normal_(generator=generator)
        assert norm.running_var is not None
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return convolution.to(dtype), norm.to(dtype)


def photographs(n: int, c: int, height: int, width: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Smooth and not centred, as images are."""
    noise = torch.randn(n, c, height, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (nn.functional.avg_pool2d(noise, 3, 1, 1) + 0.7).to(dtype)


SIZES = st.integers(1, 4).map(lambda half: 2 * half)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 5), SIZES, SIZES, st.booleans(), st.integers(1, 40))
def test_it_is_the_layers(n: int, c: int, k: int, height: int, width: int, training: bool, values: int) -> None:
    convolution, norm = layers(c, k)
    norm.train(training)
    others = copy.deepcopy(convolution), copy.deepcopy(norm)
    images = photographs(n, c, height, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_VALUES", values)
        pooled = first_level(images, convolution, norm)
        expected = ReluPool()(others[1](others[0](images)))
        torch.testing.assert_close(pooled, expected)
        if training:
            weights = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            pooled.backward(weights)
            expected.backward(weights)
            for ours, theirs in zip((convolution, norm), others, strict=True):
                for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                    torch.testing.assert_close(own.grad, other.grad)
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, others[1].state_dict()[name])


def test_gradients_against_finite_differences() -> None:
    convolution, norm = layers(2, 3)
    images = photographs(3, 2, 4, 6)
    parameters = [*convolution.parameters(), *norm.parameters()]

    def pooled(*values: Tensor) -> Tensor:
        result: Tensor = module._FirstLevel.apply(images, *values, 1e-5)[0]
        return result

    assert torch.autograd.gradcheck(pooled, tuple(parameters))


def test_adding_to_all_of_a_channel_changes_nothing_so_its_gradient_is_zero() -> None:
    convolution, norm = layers(3, 4)
    first_level(photographs(2, 3, 8, 8), convolution, norm).square().sum().backward()
    assert convolution.bias is not None and convolution.bias.grad is not None
    assert not convolution.bias.grad.any()


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("tracks", [True, False])
def test_running_statistics_follow_as_torch_lets_them(momentum: float | None, tracks: bool) -> None:
    convolution, norm = layers(3, 4)
    norm.momentum, norm.track_running_stats = momentum, tracks
    other = copy.deepcopy(norm)
    for start in range(3):
        images = photographs(2, 3, 8, 8) * (start + 1)
        first_level(images, convolution, norm)
        other(convolution(images))
    for name, value in norm.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name])


def test_in_float32_it_is_closer_to_exact_values_than_the_layers() -> None:
    exact = layers(3, 128)
    convolution, norm = layers(3, 128, torch.float32)
    images = photographs(16, 3, 32, 32, torch.float32)
    weights = torch.randn(16, 128, 16, 16, generator=torch.Generator().manual_seed(2))

    def error(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
        return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)]

    def results(output: Tensor, *parts: nn.Module) -> list[Tensor]:
        # That of the convolution's bias is zero but for rounding.
        parameters = [parts[0].weight, *parts[1].parameters()]
        return [output.detach(), *torch.autograd.grad(output, parameters, weights.to(output.dtype))]  # type: ignore[arg-type]

    wanted = results(ReluPool()(exact[1](exact[0](images.double()))), *exact)
    ours = error(results(first_level(images, convolution, norm), convolution, norm), wanted)
    theirs = error(results(ReluPool()(norm(convolution(images))), convolution, norm), wanted)
    assert max(ours) < 2e-6
    assert ours[1] < theirs[1], "the filters' gradient, where sums over all pixels cancel"


def test_a_filter_that_sees_little_of_smooth_images_is_normalised_well() -> None:
    """Its variance comes out of covariances 900 times as large."""
    wave = torch.linspace(0, torch.pi, 34)[1:-1].sin().square()
    images = 3 * torch.linspace(-1, 1, 16).view(-1, 1, 1, 1) * torch.outer(wave, wave)
    convolution, norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1, momentum=1.0)
    with torch.no_grad():
        convolution.weight.copy_(torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]))
    exact = nn.functional.conv2d(images.double(), convolution.weight.detach().double(), padding=1).var()
    assert exact < images.var() / 800
    first_level(images, convolution, norm)
    assert norm.running_var is not None
    assert float(norm.running_var) == pytest.approx(float(exact), rel=1e-3)


def test_a_second_derivative_is_refused_and_not_silently_wrong() -> None:
    convolution, norm = layers(1, 2)
    output = first_level(photographs(2, 1, 4, 4), convolution, norm)
    (gradient,) = torch.autograd.grad(output.square().sum(), [convolution.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_it_steps_aside_for_whoever_needs_the_layers() -> None:
    convolution, norm = layers(3, 4)
    images = photographs(2, 3, 8, 8)
    assert fits(images, convolution, norm)
    assert not fits(images.clone().requires_grad_(), convolution, norm), "a gradient to the pixels"
    assert not fits(photographs(2, 3, 8, 7), convolution, norm), "a row left over"
    assert not fits(images, convolution, nn.InstanceNorm2d(4)), "another norm"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not fits(images, convolution, norm)
    norm.eval()
    assert not fits(images, convolution, norm), "running statistics and a gradient to the scales"
    norm.requires_grad_(False)
    assert not fits(images, convolution, norm), "running statistics and a gradient to the filters"
    with torch.no_grad():
        assert fits(images, convolution, norm)
    handle = norm.register_forward_pre_hook(lambda *_: None)
    with torch.no_grad():
        assert not fits(images, convolution, norm), "somebody looks at BatchNorm's input"
        handle.remove()
        assert fits(images, convolution, norm)


def networks(depth: int = 2, width: int = 8) -> tuple[ConvNet, ConvNet]:
    torch.manual_seed(0)
    fused = ConvNet(depth, width, 5, 3, 8)
    plain = copy.deepcopy(fused)
    Runtime(ComputeConfig()).network(fused)
    assert fused.fused and not plain.fused
    return fused, plain


def test_the_runtime_fuses_convnets_unless_it_is_told_not_to() -> None:
    network = Runtime(ComputeConfig(convolution="direct")).network(ConvNet(2, 8, 5, 3, 8))
    assert isinstance(network, ConvNet) and not network.fused


def test_a_fused_network_trains_as_a_plain_one() -> None:
    images, found = photographs(6, 3, 8, 8, torch.float32), []
    for network in networks():
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            network(images).square().mean().backward()
            optimizer.step()
        network.eval()
        with torch.no_grad():
            found.append(network(images))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_statistics_of_inputs_are_seen_in_a_fused_network() -> None:
    fused, plain = (freeze_batchnorm(network.eval().requires_grad_(False)) for network in networks())
    images = photographs(4, 3, 8, 8, torch.float32)
    collected = []
    for network in (fused, plain):
        with BatchNormInputs(network, "net") as inputs:
            network(images)
            collected.append(inputs.collect())
    for ours, theirs in zip(*collected, strict=True):
        torch.testing.assert_close(ours, theirs)
