"""Networks for tests of BatchNorm."""

from __future__ import annotations

import torch
from torch import nn

from cudd_core.models.registry import build_network


def network_of(arch: str, size: int = 16) -> nn.Module:
    """A network in eval mode, frozen, whose BatchNorm layers and biases are as if it had been trained."""
    network = build_network(arch, 4, 3, size, seed=0).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(5)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            for values, low in ((layer.running_mean, -0.3), (layer.running_var, 0.5), (layer.weight, 0.5)):
                values.copy_(low + torch.rand(values.shape, generator=generator))
            layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator) - 0.5)
    return network
