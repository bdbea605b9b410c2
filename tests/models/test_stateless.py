"""Networks as functions of their parameters; the ConvNet with InstanceNorm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cudd_core.errors import ModelError
from cudd_core.models.registry import build_network
from cudd_core.models.relu_pool import ReluPool
from cudd_core.models.stateless import leaves, sgd_step, stateless

ARCHS = ("convnet2-w4-in", "convnet2-w4")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


def test_instance_norm_takes_batch_norm_s_place_and_size() -> None:
    instance, batch = build_network("convnet3-in", 10, 3, 32, 0), build_network("convnet3", 10, 3, 32, 0)
    kinds = [type(layer) for layer in instance.features]  # type: ignore[union-attr]
    assert kinds == [nn.Conv2d, nn.InstanceNorm2d, ReluPool] * 3
    count = [sum(p.numel() for p in network.parameters()) for network in (instance, batch)]
    assert count == [320_010, 320_010]
    assert not dict(instance.named_buffers())
    assert sum(p.numel() for p in build_network("convnet2-w4-in", 3, 1, 8, 0).parameters()) < 1000


def test_with_instance_norm_an_image_s_answer_does_not_depend_on_its_batch(batch: tuple[Tensor, Tensor]) -> None:
    network = build_network("convnet2-w4-in", 3, 3, 8, 0)
    torch.testing.assert_close(network(batch[0])[:2], network(batch[0][:2]))
    assert torch.equal(network.eval()(batch[0]), network.train()(batch[0]))


@pytest.mark.parametrize("arch", ARCHS)
def test_a_step_is_that_of_torch_s_sgd(arch: str, batch: tuple[Tensor, Tensor]) -> None:
    network = stateless(build_network(arch, 3, 3, 8, 0), arch)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    stepped, loss = sgd_step(network, leaves(before), *batch, 0.1)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())  # a function
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    theirs = cross_entropy(network(batch[0]), batch[1])
    theirs.backward()
    optimizer.step()
    assert float(loss) == float(theirs.detach())
    for name, value in network.named_parameters():
        torch.testing.assert_close(stepped[name], value.detach())
        assert not stepped[name].requires_grad


def test_batch_norm_keeps_nothing_of_what_it_saw(batch: tuple[Tensor, Tensor]) -> None:
    network = stateless(build_network("convnet2-w4", 3, 3, 8, 0), "convnet2-w4")
    first = network(batch[0])
    network(5 * batch[0] + 1)
    assert torch.equal(network(batch[0]), first)
    assert not dict(network.named_buffers())


def test_other_networks_are_refused() -> None:
    with pytest.raises(ModelError, match=r"synthesis\.mtt\.arch = resnet18.*ConvNets alone"):
        stateless(build_network("resnet18", 3, 3, 8, 0), "resnet18")
