"""Frozen BatchNorm with what stands beside it in one pass, against torch's layers in float64.

tests/compute/gpu/test_batchnorm.py runs the same functions on a CPU, small, by Triton's interpreter.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, batch_norm, relu

from cudd_core.compute.cpu.batchnorm import After, Layer
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.models import frozen_batchnorm
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.frozen_batchnorm import FrozenBatchNorm2d, freeze_batchnorm
from tests.models.networks import network_of

Amp = Literal["off", "bf16"]
Case = tuple[tuple[int, ...], torch.dtype, After, bool]
TYPES = (torch.float32, torch.bfloat16)


def cases(*shapes: tuple[int, ...], pool: bool = True) -> Iterator[Case]:
    """Shapes × types × what follows × whether the convolution's bias is left to the layer."""
    after = [each for each in After if pool or each is not After.POOL]
    return itertools.product(shapes, TYPES, after, (False, True))


def exactly(x: Tensor, layer: Layer, after: After, beside: Tensor | None, bias: Tensor | None) -> tuple[Tensor, ...]:
    """Output, mean and biased variance of a layer, by torch, and what ReLU is given."""
    shifted = x if bias is None else x + bias.view(-1, 1, 1)
    y = batch_norm(shifted, *layer.running, layer.weight, layer.bias, eps=layer.eps)
    if beside is not None:
        y = y + beside
    before = y.detach()
    if after is not After.NOTHING:
        y = relu(y)
    if after is After.POOL:
        y = avg_pool2d(y, 2)
    return y, shifted.mean((0, 2, 3)), shifted.var((0, 2, 3), unbiased=False), before


def kernels_agree(device: str, shape: tuple[int, ...], kind: torch.dtype, after: After, biased: bool) -> None:
    from cudd_core.compute.gpu.batchnorm import normalise, normalise_and_look

    g = torch.Generator().manual_seed(0)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=g)

    x = (drawn(*shape) * 3 + 20).to(device, kind).contiguous(memory_format=torch.channels_last).requires_grad_()
    beside = drawn(*shape).to(device, kind).contiguous(memory_format=torch.channels_last).requires_grad_()
    mean, weight, bias, added = (values.to(device) for values in drawn(4, shape[1]))
    # Close to the batch's own statistics, so that ReLU lets some values pass.
    layer = Layer((mean + 20, drawn(shape[1]).square().to(device) + 4), weight, bias, 1e-5)
    convolution_bias = added.to(kind) if biased else None
    joined = after is After.JOIN
    inputs = (x, beside) if joined else (x,)

    exact = [value.detach().double().requires_grad_() for value in inputs]
    exact_layer = Layer((layer.running[0].double(), layer.running[1].double()), weight.double(), bias.double(), 1e-5)
    exact_bias = None if convolution_bias is None else convolution_bias.double()
    *wanted, before = exactly(exact[0], exact_layer, after, exact[1] if joined else None, exact_bias)
    # Nearer to 0 than float32 can tell, ReLU may let a value pass or not.
    told = torch.ones_like(before, dtype=torch.bool) if after is After.NOTHING else before.abs() > 1e-4
    assert told.double().mean() > 0.999 or told.numel() < 10

    given = (x, layer, after, beside if joined else None, convolution_bias)
    found, alone = normalise_and_look(*given), normalise(*given)
    assert torch.equal(found[0], alone)
    assert found[0].dtype == kind and found[0].is_contiguous(memory_format=torch.channels_last)
    tolerance = 1e-5 if kind == torch.float32 else 2**-7
    torch.testing.assert_close(found[0].double(), wanted[0], rtol=tolerance, atol=4 * tolerance)
    assert found[1].dtype == found[2].dtype == torch.float32
    torch.testing.assert_close(found[1].double(), wanted[1], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(found[2].double(), wanted[2], rtol=1e-5, atol=1e-6)

    # The kernels get the gradient as torch's layers may leave it, not channels last.
    grads = [drawn(*found[0].shape).to(device, kind), *(values.to(device) for values in drawn(2, shape[1]))]
    for outputs in (found, (alone,)):
        last = len(outputs)
        ours = torch.autograd.grad(outputs, inputs, grads[:last], retain_graph=True)
        again = torch.autograd.grad(outputs, inputs, grads[:last])
        expected = torch.autograd.grad(
            wanted[:last], exact, [each.double() for each in grads[:last]], retain_graph=True
        )
        for mine, repeated, theirs in zip(ours, again, expected, strict=True):
            assert torch.equal(mine, repeated)
            assert mine.dtype == kind and mine.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(mine.double()[told], theirs[told], rtol=tolerance, atol=2 * tolerance)


def many_rows_agree(device: str, parts: int | None = None) -> None:
    """More rows than there are parts, so that a program takes several tiles; `parts`: fewer of them."""
    from cudd_core.compute.gpu import batchnorm as gpu_batchnorm

    if parts is not None:
        gpu_batchnorm._PARTS = parts
    rows = gpu_batchnorm._PARTS * gpu_batchnorm._VALUES // gpu_batchnorm._CHANNELS
    for after in (After.RELU, After.POOL):
        kernels_agree(device, (rows // 9, 70, 6, 4), torch.float32, after, True)


def use_kernels_on_cpu() -> None:
    """Let networks on a CPU compute as on a GPU."""
    from cudd_core.compute.gpu import batchnorm as gpu_batchnorm

    for name, value in (("_has_kernels", lambda x: True), ("gpu_kernels", lambda name: gpu_batchnorm)):
        setattr(frozen_batchnorm, name, value)


def images(n: int, size: int) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 + 0.5


def looked_through(network: nn.Module, pixels: Tensor, where: Runtime) -> list[Tensor]:
    """Logits, the statistics at each layer, and a gradient of them all to the pixels."""
    pixels = pixels.detach().requires_grad_()
    with BatchNormInputs(network, "a network") as watched:
        with where.autocast():
            logits = network(pixels)
        outputs = [logits, *(value for pair in watched.collect() for value in pair)]
    total = sum(value.to(torch.promote_types(value.dtype, torch.float32)).square().mean() for value in outputs)
    return [*outputs, *torch.autograd.grad(total, pixels)]


def runtime(device: str, amp: Amp) -> Runtime:
    config: Any = {"device": device, "amp": amp, "convolution": "direct"}
    return Runtime(ComputeConfig(**config))


def errors(found: list[Tensor], wanted: list[Tensor]) -> tuple[float, float, float]:
    """Relative errors of logits, of all statistics together, and of the gradient."""

    def error(a: list[Tensor], b: list[Tensor]) -> float:
        mine, theirs = (torch.cat([each.detach().double().cpu().flatten() for each in values]) for values in (a, b))
        return float((mine - theirs).norm() / theirs.norm())

    return tuple(error(found[part], wanted[part]) for part in (slice(1), slice(1, -1), slice(-1, None)))  # type: ignore[return-value]


def exact_results(arch: str, size: int, n: int) -> list[Tensor]:
    network = network_of(arch, size).double()
    return looked_through(network, images(n, size).double(), Runtime(ComputeConfig()))


def network_agrees(device: str, arch: str, size: int, n: int) -> None:
    """In float32: what torch's layers give in float64, up to rounding and the signs of a few values near 0."""
    wanted = exact_results(arch, size, n)
    where = runtime(device, "off")
    network = where.network(freeze_batchnorm(network_of(arch, size)))
    pixels = where.images(images(n, size))
    found, again = (looked_through(network, pixels, where) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    of_logits, of_statistics, of_gradient = errors(found, wanted)
    assert of_logits < 1e-4 and of_statistics < 1e-4 and of_gradient < 0.02
    with torch.no_grad():
        # No statistics, and nothing kept: the same values.
        assert torch.equal(network(pixels), found[0])


def images_do_not_disturb_each_other(device: str, arch: str, size: int) -> None:
    where = runtime(device, "bf16")
    network = where.network(freeze_batchnorm(network_of(arch, size)))
    pixels = where.images(images(6, size))
    others = torch.cat((pixels[:3], 100 * pixels[3:]))
    with torch.no_grad(), where.autocast():
        assert torch.equal(network(pixels)[:3], network(others)[:3])


def hooks_see_what_they_saw(device: str) -> None:
    """A convolution that something looks at adds its bias itself."""
    where = runtime(device, "off")
    network = where.network(freeze_batchnorm(network_of("convnet3-w8", 8)))
    pixels, seen = where.images(images(2, 8)), list[Tensor]()
    convolution = network.get_submodule("features.0")
    unseen = network(pixels)
    with convolution.register_forward_hook(lambda module, inputs, output: seen.append(output)):
        torch.testing.assert_close(network(pixels), unseen, rtol=1e-4, atol=1e-5)
    assert torch.equal(seen[0], convolution(pixels))


SHAPES = ((5, 7, 6, 8), (1, 1, 2, 2), (33, 70, 4, 4), (100, 64, 32, 32))


@pytest.mark.parametrize(("shape", "kind", "after", "biased"), list(cases(*SHAPES)))
def test_kernels_give_what_torch_gives_in_float64(
    shape: tuple[int, ...], kind: torch.dtype, after: After, biased: bool
) -> None:
    kernels_agree("cuda", shape, kind, after, biased)


def test_odd_sides_and_many_rows() -> None:
    for case in cases((1, 1, 1, 1), (3, 5, 7, 9), pool=False):
        kernels_agree("cuda", *case)
    many_rows_agree("cuda")


ARCHITECTURES = [("convnet3-w16", 32), ("convnet3", 32), ("convnet3", 28), ("resnet18-w16", 32), ("resnet50-w8", 32)]


@pytest.mark.parametrize(("arch", "size"), ARCHITECTURES)
def test_in_float32_a_network_is_what_it_was(arch: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network_agrees("cuda", arch, size, 8)


@pytest.mark.parametrize(("arch", "size"), ARCHITECTURES)
def test_in_bfloat16_a_network_is_about_as_exact_as_with_torch_s_layers(arch: str, size: int) -> None:
    wanted = exact_results(arch, size, 16)
    where = runtime("cuda", "bf16")
    plain, frozen = (where.network(each) for each in (network_of(arch, size), freeze_batchnorm(network_of(arch, size))))
    pixels = where.images(images(16, size))
    theirs, found, again = (looked_through(network, pixels, where) for network in (plain, frozen, frozen))
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))
    for mine, reference in zip(errors(found, wanted), errors(theirs, wanted), strict=True):
        assert mine <= 1.25 * reference


@pytest.mark.parametrize(("arch", "size"), ARCHITECTURES)
def test_the_logits_of_an_image_do_not_depend_on_the_others(arch: str, size: int) -> None:
    images_do_not_disturb_each_other("cuda", arch, size)


def test_a_convolution_with_a_hook_adds_its_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    hooks_see_what_they_saw("cuda")


def test_a_layer_alone_and_what_the_kernels_cannot_take() -> None:
    """A library's network calls its layers one by one; float64, and another layout, go torch's way."""
    layer = freeze_batchnorm(nn.BatchNorm2d(5)).eval().requires_grad_(False).cuda()
    assert isinstance(layer, FrozenBatchNorm2d)
    x = torch.randn(4, 5, 6, 6, device="cuda")
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.double()):
        assert layer.watches(given) == (given.dtype == torch.float32 and not given.is_contiguous())
        torch.testing.assert_close(layer.to(given.dtype)(given), given / (1 + 1e-5) ** 0.5)


def test_a_convolution_whose_output_the_kernels_cannot_take_keeps_its_bias() -> None:
    """In float64, in which the difference would show."""
    plain, frozen = network_of("convnet3-w8", 16).double().cuda(), network_of("convnet3-w8", 16).double().cuda()
    pixels = images(2, 16).double().cuda()
    torch.testing.assert_close(freeze_batchnorm(frozen)(pixels), plain(pixels))
