import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cudd_core import winograd
from cudd_core.runtime import ComputeConfig, Runtime
from cudd_core.winograd import LEAST_CHANNELS, WinogradConv2d, use_winograd, winograd_conv2d


def tensors(n, c, k, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, c, height, width, generator=generator, dtype=dtype)
    weight = torch.randn(k, c, 3, 3, generator=generator, dtype=dtype)
    return images.requires_grad_(), weight.requires_grad_()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 11), st.integers(1, 11))
def test_it_is_the_convolution_for_every_size(n, c, k, height, width):
    images, weight = tensors(n, c, k, height, width)
    torch.testing.assert_close(winograd_conv2d(images, weight), nn.functional.conv2d(images, weight, padding=1))


@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (8, 3)])
def test_gradients_against_finite_differences(height, width):
    assert torch.autograd.gradcheck(winograd_conv2d, tensors(2, 2, 3, height, width))


@pytest.mark.parametrize("wanted", ["images", "weight"])
def test_only_the_gradient_that_is_asked_for_is_made(wanted):
    images, weight = tensors(2, 3, 4, 8, 8)
    expected = torch.autograd.grad(
        nn.functional.conv2d(images, weight, padding=1).square().sum(), {"images": images, "weight": weight}[wanted]
    )
    (images if wanted == "weight" else weight).requires_grad_(False)
    winograd_conv2d(images, weight).square().sum().backward()
    torch.testing.assert_close((images if wanted == "images" else weight).grad, expected[0])
    assert (images if wanted == "weight" else weight).grad is None


@pytest.mark.parametrize("tiles", [1, 8, 12, 1000])
def test_how_many_images_go_at_a_time_does_not_matter(tiles, monkeypatch):
    """Five images of four tiles: one by one, two by two with a smaller last part, three and two, all."""
    monkeypatch.setattr(winograd, "_LEAST_TILES", tiles)
    monkeypatch.setattr(winograd, "_TILES_PER_CHANNEL", 0)
    images, weight = tensors(5, 3, 4, 7, 6)
    expected = nn.functional.conv2d(images, weight, padding=1)
    found = winograd_conv2d(images, weight)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    torch.testing.assert_close(
        torch.autograd.grad(found, (images, weight), direction),
        torch.autograd.grad(expected, (images, weight), direction),
    )


def test_float32_is_close_enough_to_train_with():
    """Rounding stays five orders below the values; a direct float32 convolution is one order closer."""
    images, weight = tensors(4, 128, 128, 16, 16, torch.float32)
    exact = nn.functional.conv2d(images.double(), weight.double(), padding=1)
    assert (winograd_conv2d(images, weight) - exact).abs().max() < 3e-5 * exact.abs().max()


def test_a_second_derivative_is_refused_and_not_silently_wrong():
    images, weight = tensors(1, 2, 2, 4, 4)
    (gradient,) = torch.autograd.grad(winograd_conv2d(images, weight).square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def layer(**changes):
    settings = {"in_channels": 64, "out_channels": 64, "kernel_size": 3, "padding": 1, **changes}
    return nn.Conv2d(**settings)


@pytest.mark.parametrize(
    "changes",
    [
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5, "padding": 2},
        {"stride": 2},
        {"dilation": 2, "padding": 2},
        {"padding": 0},
        {"groups": 64},
        {"padding_mode": "reflect"},
        {"in_channels": LEAST_CHANNELS - 1},
        {"out_channels": LEAST_CHANNELS - 1},
    ],
)
def test_other_convolutions_stay_as_they_are(changes):
    network = nn.Sequential(layer(**changes))
    assert type(use_winograd(network)[0]) is nn.Conv2d


@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"padding": "same"}])
def test_a_layer_keeps_its_parameters_and_its_function(changes):
    network = nn.Sequential(layer(**changes)).double()
    images = torch.randn(2, 64, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, state = network(images), {name: value.clone() for name, value in network.state_dict().items()}
    assert type(use_winograd(network)[0]) is WinogradConv2d
    torch.testing.assert_close(network(images), before)
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_runtime_chooses():
    def chosen(**compute):
        return type(Runtime(ComputeConfig(**compute)).network(nn.Sequential(layer()))[0])

    assert chosen() is WinogradConv2d
    assert chosen(convolution="direct") is nn.Conv2d


def test_autocast_takes_the_direct_kernels():
    network = use_winograd(nn.Sequential(layer(bias=False)))
    images = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = network(images)
    assert result.dtype == torch.bfloat16
