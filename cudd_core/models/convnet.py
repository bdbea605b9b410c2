"""The field's ConvNet, with BatchNorm: L_bn needs running statistics, which the usual InstanceNorm does not have.

With InstanceNorm, its output depends only on its parameters and one image, which suits trajectory matching.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from cudd_core.compute.cpu.kernels import Fusible
from cudd_core.models.first_level import first_level, fits
from cudd_core.models.frozen_batchnorm import followed
from cudd_core.models.relu_pool import ReluPool


class ConvNet(Fusible):
    """(conv 3×3 → BatchNorm or InstanceNorm → ReLU → average-pool 2) × `depth`, then a linear head.

    Both norms have learned scales and shifts. Input [n, channels, image_size, image_size], output [n, num_classes].
    If `fused`, the first level is computed as one product (`first_level`) unless something needs its inner values. In
    a frozen network that is `fused` or on a GPU, everything between two convolutions takes one pass over memory.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int,
        channels: int,
        image_size: int,
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        layers = OrderedDict[str, nn.Module]()
        size = image_size
        for level in range(depth):
            # The names count ReLU and pooling as two layers, because stored weights use these names.
            layers[f"{4 * level}"] = nn.Conv2d(channels if level == 0 else width, width, 3, padding=1)
            layers[f"{4 * level + 1}"] = (
                nn.BatchNorm2d(width) if norm == "batch" else nn.InstanceNorm2d(width, affine=True)
            )
            layers[f"{4 * level + 2}"] = ReluPool()
            size //= 2
        self.features = nn.Sequential(layers)
        self.head = nn.Linear(width * size * size, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return flattened features [n, width · (image_size / 2^depth)²]."""
        features, layers = images, list(self.features)
        if self.fused and fits(images, *layers[:2]):
            features, layers = first_level(images, *layers[:2]), layers[3:]  # type: ignore[arg-type]
        for convolution, norm, relu_pool in zip(*(layers[part::3] for part in range(3)), strict=True):
            features = followed(norm, convolution, features, relu_pool)
        return features.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits
