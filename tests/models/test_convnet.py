from __future__ import annotations

import pytest
import torch
from torch import nn

from cudd_core.models.convnet import ConvNet
from cudd_core.models.relu_pool import ReluPool


def test_the_field_s_size() -> None:
    """ConvNet-3 of width 128 on CIFAR-10 has 320,010 parameters in every paper that uses it."""
    assert sum(p.numel() for p in ConvNet(3, 128, 10, 3, 32).parameters()) == 320_010


@pytest.mark.parametrize(("depth", "channels", "image_size"), [(1, 1, 8), (3, 3, 32), (3, 3, 28), (4, 3, 64)])
def test_shapes_and_order_of_layers(depth: int, channels: int, image_size: int) -> None:
    network = ConvNet(depth, 6, 7, channels, image_size)
    kinds = [type(layer) for layer in network.features]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, ReluPool] * depth
    images = torch.zeros(2, channels, image_size, image_size)
    side = image_size // 2**depth
    assert network.forward_features(images).shape == (2, 6 * side * side)
    assert network(images).shape == (2, 7)


def test_each_level_halves_the_image_by_averaging() -> None:
    network = ConvNet(2, 4, 3, 3, 8).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = network.features[:2](images)
        pooled = network.features[:3](images)
    torch.testing.assert_close(pooled, full.relu().view(2, 4, 4, 2, 4, 2).mean((3, 5)))


def test_weights_keep_the_names_of_a_level_of_four_layers() -> None:
    """Stored teachers and students are read by these names."""
    layers = {name.removeprefix("features.").split(".")[0] for name in ConvNet(3, 4, 3, 3, 8).state_dict()}
    assert layers == {"0", "1", "4", "5", "8", "9", "head"}


def test_head_takes_the_features() -> None:
    network = ConvNet(2, 4, 3, 3, 8).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(images), network.head(network.forward_features(images)))
