from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch
from torch import nn

from cudd_core.errors import ModelError
from cudd_core.models.convnet import ConvNet
from cudd_core.models.registry import build_network, load_state, restore_network
from cudd_core.models.resnet import ResNet
from cudd_core.records import NetworkRecord, NetworkSpec

SPEC = NetworkSpec("convnet2-w4", 3, 1, 8, (0.5,), (0.25,), ("a", "b", "c"))


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [m for m in network.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(
    ("arch", "depth", "width"), [("convnet3", 3, 128), ("convnet4", 4, 128), ("convnet3-w64", 3, 64)]
)
def test_convnets_by_name(arch: str, depth: int, width: int) -> None:
    network = build_network(arch, 10, 3, 32, seed=0)
    assert isinstance(network, ConvNet)
    assert [c.out_channels for c in convolutions(network)] == [width] * depth


@pytest.mark.parametrize(("arch", "width"), [("resnet18", 64), ("resnet18-w16", 16)])
def test_resnets_by_name(arch: str, width: int) -> None:
    network = build_network(arch, 10, 3, 32, seed=0)
    assert isinstance(network, ResNet)
    assert convolutions(network)[0].out_channels == width


def test_bare_and_full_names() -> None:
    small = build_network("resnet18", 7, 3, 32, seed=0)
    assert convolutions(small)[0].kernel_size == (3, 3)
    for arch in ("squeezenet1_1", "torchvision/squeezenet1_1"):
        network = build_network(arch, 7, 1, 32, seed=0).eval()
        assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("arch", ["convnet2-w4", "resnet18"])
def test_weights_follow_from_the_seed_and_from_nothing_else(arch: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (build_network(arch, 3, 3, 16, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_networks_are_made_in_training_mode() -> None:
    network = build_network("convnet2-w4", 3, 3, 16, seed=0)
    assert network.training and all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    "arch",
    [
        "convnet",
        "convnet3-w",
        "convnet3-w0",
        "resnet19",
        "resnet18-w0",
        "resnet18-w",
        "no-such-network",
        "timm/",
        "torchvision/nope",
        "",
    ],
)
def test_unknown_names_are_refused(arch: str) -> None:
    with pytest.raises(ModelError):
        build_network(arch, 3, 3, 32, seed=0)


@pytest.mark.parametrize(
    ("arch", "image_size"), [("convnet4", 15), ("convnet3", 7), ("convnet0", 32), ("convnet9", 512)]
)
def test_too_deep_for_the_image(arch: str, image_size: int) -> None:
    with pytest.raises(ModelError, match=arch):
        build_network(arch, 3, 3, image_size, seed=0)
    assert build_network("convnet4", 3, 3, 16, seed=0)


def test_a_restored_network_is_frozen_and_answers_as_before() -> None:
    network = build_network(SPEC.arch, 3, 1, 8, seed=5)
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network.train()(images)  # move the running statistics
    restored = restore_network(NetworkRecord(SPEC, network.state_dict()))
    assert not restored.training and not any(p.requires_grad for p in restored.parameters())
    assert torch.equal(restored(images), network.eval()(images))


def test_weights_that_do_not_fit_are_named() -> None:
    network = build_network(SPEC.arch, 3, 1, 8, seed=0)
    good = network.state_dict()
    before = {name: value.clone() for name, value in good.items()}
    without = {name: value for name, value in good.items() if name != "head.bias"}
    misshapen = good | {"head.weight": torch.zeros(5, 16)}
    for state, words in (
        (without, r"missing \['head\.bias'\]"),
        (good | {"extra": torch.zeros(1)}, r"unexpected \['extra'\]"),
        (misshapen, r"head\.weight: file \(5, 16\), network \(3, 16\)"),
    ):
        with pytest.raises(ModelError, match=words):
            load_state(network, state, SPEC)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())


def test_weights_from_before_batchnorm_counted_its_batches_fit() -> None:
    """torchvision's first ResNets have no `num_batches_tracked`."""
    network = build_network("torchvision/resnet18", 5, 3, 32, seed=0)
    old = {name: value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")}
    other = build_network("torchvision/resnet18", 5, 3, 32, seed=1)
    load_state(other, old, dataclasses.replace(SPEC, arch="torchvision/resnet18", num_classes=5, channels=3))
    assert len(old) == 102
    assert all(torch.equal(other.state_dict()[name], value) for name, value in network.state_dict().items())


def test_a_record_of_another_shape_is_refused_with_its_specification() -> None:
    state = build_network(SPEC.arch, 3, 1, 8, seed=0).state_dict()
    with pytest.raises(ModelError, match=r"convnet2-w4 with 4 classes at 8 px"):
        restore_network(NetworkRecord(replace(SPEC, num_classes=4), state))
