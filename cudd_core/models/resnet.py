"""torchvision's ResNets, with the stem that small images need."""

from __future__ import annotations

from torch import nn

SMALL_IMAGE = 64
"""Largest side in pixels for which the stem is 3×3, stride 1, without max-pool (Sec. III-A)."""


def build_resnet(name: str, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Return `resnet18`, `resnet34`, `resnet50` or `resnet101`, stem chosen by `image_size`."""
    # Here, for torchvision brings torch's compiler with it: seconds that a run of ConvNets need not wait.
    from torchvision.models import resnet

    network: nn.Module = getattr(resnet, name)(weights=None, num_classes=num_classes)
    if image_size <= SMALL_IMAGE:
        network.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    if image_size <= SMALL_IMAGE or channels != 3:
        assert isinstance(network.conv1, nn.Conv2d)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network
