"""FLOPs of networks, of convolutions and matrix products only; a multiplication and an addition count as two."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cudd_core.models.convnet import ConvNet
from cudd_core.models.registry import build_network
from cudd_core.models.resnet import ResNet


def forward_flops(arch: str, num_classes: int, channels: int, image_size: int) -> int:
    """Return the FLOPs of one image's forward pass."""
    network = build_network(arch, num_classes, channels, image_size, seed=0).eval()
    shape = (1, channels, image_size, image_size)
    if isinstance(network, ConvNet | ResNet):
        return _flops_of_layers(network, torch.zeros(shape))
    # Attention multiplies outside layers. This counter sees everything, but needs torch's compiler and so seconds.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.to("meta")(torch.empty(shape, device="meta"))
    return int(counter.get_total_flops())


def _flops_of_layers(network: nn.Module, image: Tensor) -> int:
    """Return the FLOPs of a network that multiplies only in convolutions and linear layers."""
    found = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal found
        if isinstance(layer, nn.Conv2d | nn.Linear):
            found += 2 * output.numel() * layer.weight[0].numel()

    for layer in network.modules():
        layer.register_forward_hook(count)
    with torch.no_grad():
        network(image)
    return found
