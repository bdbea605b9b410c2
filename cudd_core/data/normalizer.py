"""Conversion between pixels and the normalised values that networks see."""

from __future__ import annotations

import torch
from torch import Tensor

from cudd_core.compute.transfer import upload
from cudd_core.records import NetworkSpec


class Normalizer:
    """uint8 pixels ↔ normalised floats, (pixel / 255 − mean) / std per channel."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu") -> None:
        self.mean = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self._low, self._high = (0 - self.mean) / self.std, (1 - self.mean) / self.std

    @classmethod
    def of(cls, spec: NetworkSpec, device: torch.device | str = "cpu") -> Normalizer:
        """Return the normaliser for a network's images."""
        return cls(spec.mean, spec.std, device)

    def __call__(self, images: Tensor) -> Tensor:
        """Return uint8 images as normalised float32."""
        return (upload(images, self.mean.device).float() / 255 - self.mean) / self.std

    def clamp_(self, images: Tensor) -> Tensor:
        """Clamp normalised images in place to the range that pixels 0 … 255 span."""
        return images.clamp_(self._low, self._high)

    def to_uint8(self, images: Tensor) -> Tensor:
        """Return the nearest uint8 images, on the host. `to_uint8(self(x)) == x` for every uint8 x."""
        return ((images * self.std + self.mean) * 255).round().clamp(0, 255).to("cpu", torch.uint8)
