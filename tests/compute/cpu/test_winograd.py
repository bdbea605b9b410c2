import logging
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cudd_core.compute.cpu import compiled, winograd
from cudd_core.compute.cpu.winograd import WinogradConv2d, is_built, use_winograd, winograd_conv2d
from cudd_core.compute.runtime import ComputeConfig, Runtime

needs_compiler = pytest.mark.skipif(not is_built(torch.float32), reason="no C compiler")


def tensors(n, c, k, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, c, height, width, generator=generator, dtype=dtype)
    weight = torch.randn(k, c, 3, 3, generator=generator, dtype=dtype)
    return images.requires_grad_(), weight.requires_grad_()


SIZES = ((1, 16, 16), (2, 16, 48), (3, 32, 16), (1, 144, 16), (2, 16, 144))
"""Images, input and output channels: one and several columns of products, depths of one and of two parts."""


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SIZES), st.integers(1, 11), st.integers(1, 11))
def test_it_is_the_convolution_for_every_size(sizes, height, width):
    images, weight = tensors(*sizes, height, width)
    found, expected = winograd_conv2d(images, weight), nn.functional.conv2d(images, weight, padding=1)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    torch.testing.assert_close(
        torch.autograd.grad(found, (images, weight), direction),
        torch.autograd.grad(expected, (images, weight), direction),
    )


@needs_compiler
@pytest.mark.parametrize(("height", "width"), [(4, 4), (5, 7), (8, 3)])
def test_gradients_against_finite_differences(height, width):
    assert torch.autograd.gradcheck(winograd_conv2d, tensors(2, 16, 16, height, width), fast_mode=True)


@needs_compiler
@pytest.mark.parametrize("wanted", ["images", "weight"])
def test_only_the_gradient_that_is_asked_for_is_made(wanted):
    images, weight = tensors(2, 16, 32, 8, 8)
    expected = torch.autograd.grad(
        nn.functional.conv2d(images, weight, padding=1).square().sum(), {"images": images, "weight": weight}[wanted]
    )
    (images if wanted == "weight" else weight).requires_grad_(False)
    winograd_conv2d(images, weight).square().sum().backward()
    torch.testing.assert_close((images if wanted == "images" else weight).grad, expected[0])
    assert (images if wanted == "weight" else weight).grad is None


@needs_compiler
@pytest.mark.parametrize("channels", [16, 144])
def test_an_image_has_the_same_bits_among_any_others(channels):
    """Its tiles fall into other blocks of another number then, and its rows of products among others."""
    images, weight = tensors(40, channels, 16, 7, 6, torch.float32)
    every = winograd_conv2d(images, weight)
    for some in (slice(0, 1), slice(3, 7), slice(11, 40)):
        assert torch.equal(winograd_conv2d(images[some], weight), every[some])
    (gradient,) = torch.autograd.grad(every, images, every.detach())
    (alone,) = torch.autograd.grad(winograd_conv2d(images[3:7], weight), images, every[3:7].detach())
    assert torch.equal(alone[3:7], gradient[3:7])


@needs_compiler
@pytest.mark.parametrize("channels", [16, 144])
def test_bits_do_not_depend_on_how_wide_vectors_are(channels, monkeypatch):
    """48 and 114 tiles in a block leave 0 or 2 rows of eight over, 16 and 144 channels 4 or 0 rows of six."""
    images, weight = tensors(40, channels, 16, 7, 6, torch.float32)
    compiler = os.environ.get("CC") or "cc"

    def with_vectors_of(size):
        monkeypatch.setenv("CC", f"{compiler} -DVECTOR_BYTES={size}")
        compiled.library.cache_clear()
        result = winograd_conv2d(images, weight)
        return result, *torch.autograd.grad(result, (images, weight), result.detach())

    try:
        for narrow, wide in zip(with_vectors_of(32), with_vectors_of(64), strict=True):
            assert torch.equal(narrow, wide)
    finally:
        compiled.library.cache_clear()


@needs_compiler
def test_layouts_do_not_matter():
    """Images, gradients and filters may lie in memory in any order, and filters among others."""
    images, weight = tensors(3, 16, 32, 6, 5)
    direction = torch.randn(3, 32, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad(nn.functional.conv2d(images, weight, padding=1), (images, weight), direction)
    among = torch.stack((weight, 2 * weight), dim=1)[:, 0]
    for filters in (weight, weight.contiguous(memory_format=torch.channels_last), among):
        for layout in (torch.contiguous_format, torch.channels_last):
            found = winograd_conv2d(images.contiguous(memory_format=layout), filters)
            gradients = torch.autograd.grad(found, (images, weight), direction.contiguous(memory_format=layout), True)
            torch.testing.assert_close(gradients, expected)
    (summed,) = torch.autograd.grad(winograd_conv2d(images, weight).sum(), weight)  # an expanded gradient
    torch.testing.assert_close(
        summed, torch.autograd.grad(nn.functional.conv2d(images, weight, padding=1).sum(), weight)[0]
    )


@needs_compiler
@pytest.mark.usefixtures("pool")
def test_threads_share_the_images():
    images, weight = tensors(5, 16, 16, 8, 8)
    direction = torch.randn(5, 16, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def all_of_it(threads):
        torch.set_num_threads(threads)
        result = winograd_conv2d(images, weight)
        return result, *torch.autograd.grad(result, (images, weight), direction)

    before = torch.get_num_threads()
    try:
        one, three = all_of_it(1), all_of_it(3)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one[0], three[0]) and torch.equal(one[1], three[1])
    torch.testing.assert_close(one[2], three[2])


@needs_compiler
def test_what_comes_out_may_be_changed_in_place():
    images, weight = tensors(2, 16, 16, 5, 5)
    found, wanted = torch.relu_(winograd_conv2d(images, weight)), torch.relu(winograd_conv2d(images, weight))
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=found.dtype)
    for mine, theirs in zip(
        *(torch.autograd.grad(y, (images, weight), direction) for y in (found, wanted)), strict=True
    ):
        assert torch.equal(mine, theirs)


@needs_compiler
def test_a_part_without_memory_is_said(monkeypatch):
    monkeypatch.setattr(winograd, "in_parts", lambda some, n: [True, False])
    with pytest.raises(MemoryError, match="batch size"):
        winograd_conv2d(*tensors(5, 16, 16, 8, 8))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bias_is_added_to_the_bit(dtype):
    images, weight = tensors(3, 16, 32, 7, 5, dtype)
    bias = torch.randn(32, generator=torch.Generator().manual_seed(4), dtype=dtype).requires_grad_()
    found, wanted = winograd_conv2d(images, weight, bias), winograd_conv2d(images, weight) + bias.view(-1, 1, 1)
    assert torch.equal(found, wanted)
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
    inputs = (images, weight, bias)
    for mine, theirs in zip(*(torch.autograd.grad(y, inputs, direction) for y in (found, wanted)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("images", "filters"),
    [
        (torch.zeros(1, 17, 8, 8), torch.zeros(16, 17, 3, 3)),
        (torch.zeros(1, 16, 8, 8), torch.zeros(24, 16, 3, 3)),
        (torch.zeros(1, 16, 8, 8), torch.zeros(16, 32, 3, 3)),
        (torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 5, 5)),
        (torch.zeros(16, 8, 8), torch.zeros(16, 16, 3, 3)),
        (torch.zeros(0, 16, 8, 8), torch.zeros(16, 16, 3, 3)),
        (torch.zeros(1, 16, 8, 8), torch.zeros(16, 16, 3, 3, dtype=torch.float64)),
        (torch.zeros(1, 16, 8, 8).half(), torch.zeros(16, 16, 3, 3).half()),
        (torch.zeros(1, 16, 8, 8, device="meta"), torch.zeros(16, 16, 3, 3)),
    ],
    ids=["inputs", "outputs", "other inputs", "sides", "one image", "none", "types", "half", "devices"],
)
def test_what_the_code_cannot_read_is_refused(images, filters):
    with pytest.raises(ValueError, match="multiples of 16"):
        winograd_conv2d(images, filters)


@needs_compiler
def test_float32_is_close_enough_to_train_with():
    """Rounding stays five orders below the values; a direct float32 convolution is one order closer."""
    images, weight = tensors(4, 128, 128, 16, 16, torch.float32)
    exact = nn.functional.conv2d(images.double(), weight.double(), padding=1)
    assert (winograd_conv2d(images, weight) - exact).abs().max() < 3e-5 * exact.abs().max()


@needs_compiler
def test_a_second_derivative_is_refused_and_not_silently_wrong():
    images, weight = tensors(1, 16, 16, 4, 4)
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
        {"in_channels": 63},
        {"out_channels": 24},
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


@needs_compiler
@pytest.mark.parametrize(
    ("images", "computes"),
    [((2, 64, 4, 4), True), ((2, 64, 3, 9), False), ((0, 64, 8, 8), False)],
    ids=["tiles", "narrow", "none"],
)
def test_direct_kernels_take_what_gains_nothing(images, computes):
    network = use_winograd(nn.Sequential(layer(bias=False)))
    result = network(torch.zeros(images))
    assert ("_Winograd" in type(result.grad_fn).__name__) is computes
    assert result.shape == images


def test_shapes_can_be_followed_without_values():
    network = use_winograd(nn.Sequential(layer())).to("meta")
    assert network(torch.zeros(2, 64, 8, 8, device="meta")).shape == (2, 64, 8, 8)


def test_without_a_compiler_the_direct_kernels_compute_and_it_is_said(monkeypatch, caplog):
    compiled.library.cache_clear()
    monkeypatch.setenv("CC", "no-such-compiler")
    network, images = use_winograd(nn.Sequential(layer())), torch.randn(2, 64, 8, 8)
    try:
        with caplog.at_level(logging.WARNING, logger="cudd.kernels"):
            found = network(images)
            network(images)
    finally:
        compiled.library.cache_clear()
    assert torch.equal(found, nn.functional.conv2d(images, network[0].weight, network[0].bias, padding=1))
    (said,) = caplog.messages
    assert "no-such-compiler" in said and "Install a C compiler" in said


@needs_compiler
def test_what_was_compiled_is_found_again_and_a_broken_compiler_is_quoted(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.library.cache_clear()
    try:
        assert compiled.library("winograd.c") is not None
        (built,) = (tmp_path / "cudd").iterdir()
        assert (tmp_path / "cudd").stat().st_mode & 0o777 == 0o700
        before = built.stat().st_mtime_ns
        compiled.library.cache_clear()
        assert compiled.library("winograd.c") is not None
        assert built.stat().st_mtime_ns == before
        broken = tmp_path / "broken"
        broken.write_text("#!/bin/sh\necho the disk is full >&2\nexit 1\n")
        broken.chmod(0o755)
        monkeypatch.setenv("CC", str(broken))
        compiled.library.cache_clear()
        assert compiled.library("winograd.c") is None
        assert "the disk is full" in caplog.text
        assert os.listdir(tmp_path / "cudd") == [built.name]
        monkeypatch.delenv("CC")
        (tmp_path / "cudd").chmod(0o777)  # others could have put something else there
        compiled.library.cache_clear()
        assert compiled.library("winograd.c") is None
        assert "others can write to it" in caplog.text and "XDG_CACHE_HOME" in caplog.text
    finally:
        compiled.library.cache_clear()
