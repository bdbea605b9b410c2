"""A split that is held decoded in memory."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ArraySplit:
    """N decoded images.

    `pixels` uint8 [N, C, H, W] with H = W; `labels` int64 [N], 0 … K − 1; `class_names` K names. `digest` covers the
    pixels, their shape, the labels and the names.
    """

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        assert self.pixels.dtype == torch.uint8 and self.pixels.dim() == 4, "pixels must be uint8 [N, C, H, W]"
        assert self.pixels.shape[2] == self.pixels.shape[3], "images must be square"
        assert self.labels.dtype == torch.int64 and self.labels.shape == self.pixels.shape[:1], "one int64 label each"
        # Shape and names (JSON), then the bytes of the labels, then those of the pixels.
        hasher = hashlib.sha256(json.dumps([list(self.pixels.shape), list(self.class_names)]).encode())
        hasher.update(self.labels.contiguous().numpy().data)
        hasher.update(self.pixels.contiguous().numpy().data)
        object.__setattr__(self, "digest", hasher.hexdigest())

    @property
    def channels(self) -> int:
        """C."""
        return self.pixels.shape[1]

    @property
    def image_size(self) -> int:
        """H = W, in pixels."""
        return self.pixels.shape[2]

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """Return images at `indices` (int64 [n]) as a new uint8 [n, C, H, W]."""
        return self.pixels[indices]
