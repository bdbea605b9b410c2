"""Frozen BatchNorm layers, alone and with what follows them, against the network as it was."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor, nn

from cudd_core.compute.cpu import batchnorm as cpu_batchnorm
from cudd_core.compute.cpu.kernels import use_cpu_kernels
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.frozen_batchnorm import FrozenBatchNorm2d, freeze_batchnorm
from tests.models.networks import network_of

needs_compiler = pytest.mark.skipif(not cpu_batchnorm.fits(torch.zeros(1, 8, 1, 1)), reason="no C compiler")


def images(n: int, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 + 0.5


def looked_through(network: nn.Module, arch: str, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """Logits and the statistics at each layer, and a gradient of them all to the pixels."""
    with BatchNormInputs(network, arch) as statistics:
        outputs = [network(pixels), *(value for pair in statistics.collect() for value in pair)]
    (gradient,) = torch.autograd.grad(sum(value.square().sum() for value in outputs), pixels)
    return outputs, gradient


@needs_compiler
@pytest.mark.parametrize(
    ("arch", "size"), [("convnet3-w16", 16), ("convnet3-w16", 28), ("resnet18-w16", 16), ("resnet50-w8", 16)]
)
def test_in_one_pass_a_network_is_what_it_was(arch: str, size: int) -> None:
    """In float64, so that rounding hides nothing; pooled sides of 28, 14 and 7 pixels too."""
    plain, fused = (network_of(arch, size).double() for _ in range(2))
    use_cpu_kernels(freeze_batchnorm(fused))
    layers = [module for module in fused.modules() if isinstance(module, FrozenBatchNorm2d)]
    pixels = images(3, size=size).double().to(memory_format=torch.channels_last).requires_grad_()
    assert layers and all(layer.in_one_pass(torch.zeros(1, layer.num_features, 1, 1).double()) for layer in layers)
    (wanted, expected), (found, gradient) = (looked_through(each, arch, pixels) for each in (plain, fused))
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(gradient, expected, rtol=1e-7, atol=1e-9 * float(expected.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(fused(pixels), wanted[0], rtol=1e-8, atol=1e-10)


@needs_compiler
@pytest.mark.parametrize("watched", [True, False])
@pytest.mark.parametrize("arch", ["convnet3-w16", "resnet18-w16"])
def test_one_pass_keeps_no_more_for_the_way_back(arch: str, watched: bool) -> None:
    """What is normalised, or what ReLU let pass, but not both; of a network that is watched, less than layers keep."""

    def kept(network: nn.Module) -> int:
        found = dict[int, int]()

        def pack(value: Tensor) -> Tensor:
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
            return value

        pixels = images(4).to(memory_format=torch.channels_last).requires_grad_()
        with ExitStack() as stack:
            if watched:
                stack.enter_context(BatchNormInputs(network, arch))
            stack.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value))
            network(pixels)
        return sum(found.values())

    fused = freeze_batchnorm(network_of(arch))
    before = kept(fused)
    use_cpu_kernels(fused)
    assert kept(fused) <= (0.95 if watched else 1.01) * before


def test_layers_that_are_not_frozen_go_their_own_way() -> None:
    """Fused or not, a network in training has torch's bits."""
    pixels = images(4).to(memory_format=torch.channels_last)

    def trained(fuse: bool) -> list[Tensor]:
        network = freeze_batchnorm(network_of("resnet18-w8")).requires_grad_(True).train()
        for module in network.modules():
            if fuse and isinstance(module, FrozenBatchNorm2d):
                module.fused = True
        network(pixels).square().sum().backward()
        return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]

    for mine, theirs in zip(trained(True), trained(False), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("arch", ["convnet3-w8", "resnet18"])
def test_frozen_batchnorm_gives_torch_s_values_and_to_rounding_its_gradients(arch: str) -> None:
    ours, theirs = freeze_batchnorm(network_of(arch)), network_of(arch)
    assert any(type(module) is FrozenBatchNorm2d for module in ours.modules())
    assert not any(type(module) is nn.BatchNorm2d for module in ours.modules())
    pixels = [images(5).requires_grad_() for _ in range(2)]
    outputs = [network(x) for network, x in zip((ours, theirs), pixels, strict=True)]
    assert torch.equal(*outputs)
    mine, reference = (torch.autograd.grad(y.square().sum(), x)[0] for y, x in zip(outputs, pixels, strict=True))
    torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6 * float(reference.abs().max()))


def test_a_frozen_batchnorm_that_is_thawed_trains() -> None:
    network = freeze_batchnorm(network_of("convnet3-w8")).requires_grad_(True)
    plain = network_of("convnet3-w8").requires_grad_(True)
    for net in (network, plain):
        net.train()(images(4)).square().sum().backward()
    for mine, reference in zip(network.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None and reference.grad is not None
        assert torch.equal(mine.grad, reference.grad)
