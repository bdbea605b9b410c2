"""ResNets (He et al., 2016), with the stem that small images need.

Layers, their names and their initial weights are those of torchvision's ResNets, whose weights fit. They are spelled
out here because importing torchvision also imports torch's compiler, which costs seconds at the start of every run.
"""

from __future__ import annotations

from torch import Tensor, nn

from cudd_core.models.architectures import SMALL_IMAGE
from cudd_core.models.frozen_batchnorm import followed


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut around them."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        downsample = _shortcut(inputs, width, stride)
        self.conv1, self.bn1 = _convolution(inputs, width, 3, stride), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _convolution(width, width, 3), nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, images: Tensor) -> Tensor:
        """Return features, their sides divided by the stride."""
        shortcut = images if self.downsample is None else self.downsample(images)
        features = followed(self.bn1, self.conv1, images, self.relu)
        return followed(self.bn2, self.conv2, features, self.relu, shortcut)


class Bottleneck(nn.Module):
    """A 3×3 convolution between two 1×1 ones, with a shortcut; the 3×3 one has the stride ("version 1.5")."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        downsample = _shortcut(inputs, 4 * width, stride)
        self.conv1, self.bn1 = _convolution(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _convolution(width, width, 3, stride), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = _convolution(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, images: Tensor) -> Tensor:
        """Return features, their sides divided by the stride."""
        shortcut = images if self.downsample is None else self.downsample(images)
        features = followed(self.bn1, self.conv1, images, self.relu)
        features = followed(self.bn2, self.conv2, features, self.relu)
        return followed(self.bn3, self.conv3, features, self.relu, shortcut)


class ResNet(nn.Module):
    """A stem, four groups with `depths` blocks, the mean over positions, and a linear head.

    The first group has `width` channels, the others 2, 4 and 8 times as many.

    Input [n, 3, H, W], output [n, num_classes].
    """

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: _Depths, num_classes: int, width: int) -> None:
        super().__init__()
        widths = [width << group for group in range(4)]
        inputs = [width, *(block.expansion * channels for channels in widths)]
        self.conv1 = _convolution(3, width, 7, 2)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _group(block, inputs[0], widths[0], depths[0], 1)
        self.layer2 = _group(block, inputs[1], widths[1], depths[1], 2)
        self.layer3 = _group(block, inputs[2], widths[2], depths[2], 2)
        self.layer4 = _group(block, inputs[3], widths[3], depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs[4], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _initialise(module)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        features: Tensor = self.maxpool(followed(self.bn1, self.conv1, images, self.relu))
        features = self.layer4(self.layer3(self.layer2(self.layer1(features))))
        logits: Tensor = self.fc(self.avgpool(features).flatten(1))
        return logits


_Depths = tuple[int, int, int, int]
_RESNETS: dict[str, tuple[type[BasicBlock | Bottleneck], _Depths]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


def build_resnet(name: str, num_classes: int, channels: int, image_size: int, width: int = 64) -> ResNet:
    """Return `resnet18`, `resnet34`, `resnet50` or `resnet101`; `width` is the first group's channels, 64 in the paper.

    Up to `SMALL_IMAGE` px the first convolution is 3×3 with stride 1 and there is no max-pool (Sec. III-A).
    """
    network = ResNet(*_RESNETS[name], num_classes, width)
    if image_size <= SMALL_IMAGE:
        network.conv1 = _convolution(channels, width, 3)
        network.maxpool = nn.Identity()
    elif channels != 3:
        network.conv1 = _convolution(channels, width, 7, 2)
    if image_size <= SMALL_IMAGE or channels != 3:
        _initialise(network.conv1)
    return network


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    """Return the layers that bring a block's input to the size of its output, or None if it has that size.

    It is made before the block's own layers, so that initial weights are drawn in torchvision's order.
    """
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _group(block: type[BasicBlock | Bottleneck], inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    """Return a group of `depth` blocks, of which the first has the stride."""
    first = block(inputs, width, stride)
    return nn.Sequential(first, *(block(block.expansion * width, width, 1) for _ in range(depth - 1)))


def _initialise(convolution: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
