from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from cudd_core.models.resnet import build_resnet


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


def test_pretrained_weights_of_torchvision_fit_at_full_size() -> None:
    ours, theirs = build_resnet("resnet18", 1000, 3, 224), resnet18(weights=None)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(("name", "layers"), [("resnet18", 20), ("resnet50", 53)])
def test_number_of_batchnorm_layers(name: str, layers: int) -> None:
    with torch.device("meta"):
        network = build_resnet(name, 10, 3, 32)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.modules()) == layers
