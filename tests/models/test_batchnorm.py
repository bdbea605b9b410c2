"""What L_bn compares: statistics at the input of every BatchNorm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cudd_core.errors import ModelError
from cudd_core.losses.bn_alignment import bn_alignment
from cudd_core.models.batchnorm import BatchNormInputs, batch_statistics, use_batch_statistics
from cudd_core.models.registry import build_network


def images(n: int, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 + 0.5


def network_of(arch: str) -> nn.Module:
    return build_network(arch, 4, 3, 16, seed=0).eval().requires_grad_(False)


@pytest.mark.parametrize(("arch", "layers"), [("convnet3-w8", 3), ("resnet18", 20)])
def test_capture_equals_mean_and_biased_variance_of_each_input(arch: str, layers: int) -> None:
    network = network_of(arch)
    seen: list[Tensor] = []
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    handles = [m.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for m in norms]
    with BatchNormInputs(network, arch) as statistics:
        network(images(5))
        captured = statistics.collect()
    for handle in handles:
        handle.remove()
    assert len(captured) == len(seen) == len(statistics.running) == layers
    # Both networks call their BatchNorm layers in the order in which they were made, except for shortcuts.
    by_shape = sorted(seen, key=lambda x: (x.shape[1], float(x.double().mean())))
    ours = sorted(captured, key=lambda s: (len(s[0]), float(s[0].double().mean())))
    for x, (mean, variance) in zip(by_shape, ours, strict=True):
        torch.testing.assert_close(mean, x.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variance, x.var((0, 2, 3), unbiased=False), rtol=1e-5, atol=1e-6)


def test_layers_and_their_running_statistics_correspond() -> None:
    network = network_of("resnet18")
    with BatchNormInputs(network, "resnet18") as statistics:
        network(images(3))
        captured = statistics.collect()
        running = statistics.running
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert [len(mean) for mean, _ in captured] == [m.num_features for m in norms]
    assert all(a is m.running_mean and b is m.running_var for (a, b), m in zip(running, norms, strict=True))


def test_batch_statistics_normalise_and_leave_no_trace() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    use_batch_statistics(network, "net")
    inputs = images(4)
    answer = network(inputs)
    mean, variance = inputs.mean((0, 2, 3), keepdim=True), inputs.var((0, 2, 3), False, keepdim=True)
    torch.testing.assert_close(answer, network[2]((inputs - mean) / (variance + 1e-5).sqrt()), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network(inputs * float("inf"))  # nor do batches that cannot be normalised
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with pytest.raises(ModelError, match=r"plain has no BatchNorm .* relabel.batchnorm=eval"):
        use_batch_statistics(nn.Conv2d(3, 2, 1), "plain")


def test_the_loss_is_zero_when_a_batch_has_the_running_statistics() -> None:
    network = network_of("convnet3-w8")
    batch = images(6).requires_grad_()
    with BatchNormInputs(network, "convnet3-w8") as statistics:
        for layer in range(3):  # what a layer passes on depends on its own statistics, so one after the other
            network(batch)
            mean, variance = statistics.collect()[layer]
            statistics.running[layer][0].copy_(mean.detach())
            statistics.running[layer][1].copy_(variance.detach())
        network(batch)
        value = bn_alignment(statistics.collect(), statistics.running, 10.0)
        (gradient,) = torch.autograd.grad(value, batch)
        assert float(value.detach()) == 0
        assert torch.equal(gradient, torch.zeros_like(batch))
        network(batch + 0.1)
        assert float(bn_alignment(statistics.collect(), statistics.running).detach()) > 0.01


def test_gradient_reaches_the_images_through_every_layer() -> None:
    network = network_of("convnet3-w8")
    batch = images(4).requires_grad_()
    with BatchNormInputs(network, "convnet3-w8") as statistics:
        network(batch)
        for mean, variance in statistics.collect():
            for value in (mean, variance):
                (gradient,) = torch.autograd.grad(value.sum(), batch, retain_graph=True)
                assert float(gradient.abs().max()) > 0


@pytest.mark.parametrize("arch", ["convnet3-w8", "resnet18"])
def test_outputs_are_unchanged_and_hooks_are_removed(arch: str) -> None:
    network = network_of(arch)
    before = network(images(3))
    with BatchNormInputs(network, arch) as statistics:
        assert torch.equal(network(images(3)), before)
        statistics.collect()
    assert all(not m._forward_pre_hooks for m in network.modules())
    network(images(3))
    with pytest.raises(KeyError):  # nothing is remembered any more
        statistics.collect()


def test_hooks_are_removed_after_an_error() -> None:
    network = network_of("convnet3-w8")
    with pytest.raises(RuntimeError), BatchNormInputs(network, "convnet3-w8"):
        network(torch.zeros(1, 5, 16, 16))
    assert all(not m._forward_pre_hooks for m in network.modules())


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
)
def test_a_network_without_running_statistics_is_refused_by_name(network: nn.Module) -> None:
    with pytest.raises(ModelError, match=r"some-arch has no BatchNorm.*synthesis\.weight_bn=0"):
        BatchNormInputs(network, "some-arch")


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (7, 3), (4, 3, 5)])
def test_statistics_and_their_gradients_are_those_of_var_mean(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    _, mean, variance = batch_statistics(x)
    expected = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
    torch.testing.assert_close((variance, mean), expected)
    assert torch.autograd.gradcheck(batch_statistics, (x,))
    assert torch.autograd.gradgradcheck(batch_statistics, (x,))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_float32_statistics_of_many_values_keep_four_digits(layout: torch.memory_format) -> None:
    """The kernel adds without compensation, as BatchNorm's training does: about 1e-5 over 100,000 values."""
    x = (images(100, 8, 32) * 3 + 5).to(memory_format=layout)
    _, mean, variance = batch_statistics(x)
    exact_variance, exact_mean = torch.var_mean(x.double(), dim=[0, 2, 3], correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-4, atol=0)
    torch.testing.assert_close(variance.double(), exact_variance, rtol=1e-4, atol=0)


def test_statistics_of_a_half_precision_batch_are_float32() -> None:
    x = images(6).bfloat16().requires_grad_()
    y, mean, variance = batch_statistics(x)
    assert torch.equal(y, x) and mean.dtype == variance.dtype == torch.float32
    torch.testing.assert_close(mean, x.float().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    (mean.sum() + variance.sum()).backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
