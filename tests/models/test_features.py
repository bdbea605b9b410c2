from __future__ import annotations

import pytest
import torch
from torch import nn

from cudd_core.errors import ModelError
from cudd_core.models.convnet import ConvNet
from cudd_core.models.features import HeadInput
from cudd_core.models.registry import build_network

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_convnet_features() -> None:
    network = ConvNet(2, 4, 5, 3, 16).eval()
    with torch.no_grad(), HeadInput(network, "convnet2-w4") as head:
        network(IMAGES)
        torch.testing.assert_close(head.collect(), network.forward_features(IMAGES))


def test_resnet_features_are_pooled() -> None:
    network = build_network("resnet18", 5, 3, 16, seed=0).eval()
    with torch.no_grad(), HeadInput(network, "resnet18") as head:
        logits = network(IMAGES)
        features = head.collect()
    assert features.shape == (3, 512) and features.dtype == torch.float32
    torch.testing.assert_close(network.fc(features), logits)


def test_features_carry_gradient_and_are_float32() -> None:
    network = ConvNet(2, 4, 5, 3, 16).eval().bfloat16()
    images = IMAGES.bfloat16().requires_grad_()
    with HeadInput(network, "convnet2-w4") as head:
        network(images)
        features = head.collect()
    assert features.dtype == torch.float32
    (gradient,) = torch.autograd.grad(features.sum(), images)
    assert float(gradient.abs().max()) > 0


def test_the_hook_is_removed() -> None:
    network = ConvNet(2, 4, 5, 3, 16).eval()
    with HeadInput(network, "convnet2-w4") as head:
        pass
    network(IMAGES)
    assert head.features is None and not network.head._forward_pre_hooks


def test_a_network_without_linear_head_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"some-arch has no linear head.*Choose another"):
        HeadInput(nn.Sequential(nn.Conv2d(3, 4, 3)), "some-arch")
