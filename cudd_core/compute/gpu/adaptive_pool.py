"""Adaptive average pooling as two matrix products: torch's has no repeatable gradient on a GPU (VGG, AlexNet)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RepeatableAdaptivePool(nn.Module):
    """Computes what `nn.AdaptiveAvgPool2d` does, [n, c, h, w] → [n, c, H, W], up to the order of sums.

    Output row i is the mean of the input's rows ⌊i·h/H⌋ to ⌈(i+1)·h/H⌉ − 1; columns alike.
    """

    def __init__(self, height: int | None, width: int | None) -> None:
        super().__init__()
        self.size = height, width
        # Kept on the device from the first step on, because a CUDA graph may not copy from the host.
        self._bins: dict[tuple[int, int, torch.device, torch.dtype], Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Return the means, or the input itself if it has the right size already."""
        (h, w), (height, width) = images.shape[-2:], self.size
        height, width = height or h, width or w
        if (height, width) == (h, w):
            return images
        # In bfloat16, the weights of three values would be 0.334 each.
        with torch.autocast(images.device.type, enabled=False):
            values = images.to(torch.promote_types(images.dtype, torch.float32))
            pooled = self._means(h, height, values) @ values @ self._means(w, width, values).T
        return pooled.to(images.dtype)

    def _means(self, size: int, parts: int, like: Tensor) -> Tensor:
        key = (size, parts, like.device, like.dtype)
        if key not in self._bins:
            self._bins[key] = bins(size, parts).to(like)
        return self._bins[key]


def bins(size: int, parts: int) -> Tensor:
    """Return the matrix [parts, size] whose row i averages the i-th of `parts` overlapping runs of `size` values."""
    starts = [i * size // parts for i in range(parts)]
    ends = [-(-(i + 1) * size // parts) for i in range(parts)]
    matrix = torch.zeros(parts, size)
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        matrix[row, start:end] = 1 / (end - start)
    return matrix


def use_repeatable_pools(network: nn.Module) -> None:
    """Replace adaptive average pooling to more than one value, in place; it has no parameters."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = child.output_size
                height, width = size if isinstance(size, tuple) else (size, size)
                if (height, width) != (1, 1):  # that is a plain mean, repeatable in torch
                    setattr(module, name, RepeatableAdaptivePool(height, width))
