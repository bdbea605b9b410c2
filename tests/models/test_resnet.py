from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet

from cudd_core.models.resnet import build_resnet
from cudd_core.seeding import seeded_construction


def test_cifar_size() -> None:
    """ResNet-18 with the 3×3 stem and ten classes has 11,173,962 parameters."""
    assert sum(p.numel() for p in build_resnet("resnet18", 10, 3, 32).parameters()) == 11_173_962


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("image_size", [32, 64])
def test_small_images_keep_their_size_through_the_stem(channels: int, image_size: int) -> None:
    network = build_resnet("resnet18", 10, channels, image_size).eval()
    images = torch.zeros(1, channels, image_size, image_size)
    with torch.no_grad():
        stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    assert stem.shape == (1, 64, image_size, image_size)
    assert network.conv1.kernel_size == (3, 3) and isinstance(network.maxpool, nn.Identity)


@pytest.mark.parametrize("channels", [1, 3])
def test_larger_images_get_torchvision_s_stem(channels: int) -> None:
    network = build_resnet("resnet18", 10, channels, 65).eval()
    images = torch.zeros(1, channels, 72, 72)
    with torch.no_grad():
        stem = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        assert network(images).shape == (1, 10)
    assert stem.shape == (1, 64, 18, 18)


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
def test_bits_are_those_of_torchvision_s_networks(name: str) -> None:
    """Initial weights, what is drawn after them, outputs and gradients: all exactly the same."""
    networks, drawn = [], []
    for build in (lambda: build_resnet(name, 7, 3, 72), lambda: getattr(resnet, name)(weights=None, num_classes=7)):
        with seeded_construction(3, name):
            networks.append(build())
            drawn.append(torch.rand(1))
    ours, theirs = networks
    assert torch.equal(*drawn)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
    outputs = [network(torch.rand(2, 3, 72, 72, generator=torch.Generator().manual_seed(0))) for network in networks]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None and torch.equal(mine.grad, other.grad)


@pytest.mark.parametrize(("name", "features"), [("resnet18", 128), ("resnet50", 512)])
def test_a_width_scales_every_group(name: str, features: int) -> None:
    """Width 16 is the network of width 64 with a quarter of the channels everywhere, its layers of the same names."""
    with torch.device("meta"):
        usual, narrow = (build_resnet(name, 10, 3, 32, width) for width in (64, 16))
    assert narrow.fc.in_features == features
    assert list(narrow.state_dict()) == list(usual.state_dict())
    pairs = zip(usual.modules(), narrow.modules(), strict=True)
    channels = [(a.out_channels, b.out_channels) for a, b in pairs if isinstance(a, nn.Conv2d)]
    assert len(channels) > 10 and all(wide == 4 * slim for wide, slim in channels)


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 20), ("resnet50", 53)])
def test_number_of_batchnorm_layers(name: str, layers: int) -> None:
    with torch.device("meta"):
        network = build_resnet(name, 10, 3, 32)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == layers
