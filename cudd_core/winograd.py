"""3×3 convolutions of stride 1 by Winograd's minimal filtering F(4×4, 3×3), for CPUs (Lavin & Gray 2016).

A tile of 4 × 4 outputs takes 36 products per pair of channels instead of 144. The transforms around them are small
matrix products too, so all of it runs at the speed of the CPU's matrix library, forward and backward: on CPUs without
bf16, where a network's time is its multiplications, a ConvNet trains in about 60 % of the time (docs/performance.md).

    V = B (x) Bᵀ of every 6 × 6 input tile,   U = G (w) Gᵀ,   M[ξ] = V[ξ] U[ξ]ᵀ for each of 36 ξ,   y = Aᵀ (M) A

With the two transforms of a tile written as one Kronecker product each, they act on all tiles and channels at once.
In float32 the result differs from the direct one by about 1e-5 of its largest value.

Shapes: n images, c input and k output channels, t = tiles of all images.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_TILE, _OVERLAP = 4, 2
_INPUT = _TILE + _OVERLAP

# The points 0, ±1, ±2 and ∞.
_TRANSFORMS = {
    "B": (
        (4, 0, -5, 0, 1, 0),
        (0, -4, -4, 1, 1, 0),
        (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0),
        (0, 2, -1, -2, 1, 0),
        (0, 4, 0, -5, 0, 1),
    ),
    "G": (
        (1 / 4, 0, 0),
        (-1 / 6, -1 / 6, -1 / 6),
        (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6),
        (1 / 24, -1 / 12, 1 / 6),
        (0, 0, 1),
    ),
    "A": (
        (1, 1, 1, 1, 1, 0),
        (0, 1, -1, 2, -2, 0),
        (0, 1, 1, 4, 4, 0),
        (0, 1, -1, 8, -8, 1),
    ),
}

LEAST_CHANNELS = 64
"""Below it, the transforms cost what the products save."""


def winograd_conv2d(images: Tensor, weight: Tensor) -> Tensor:
    """Return conv2d(images [n, c, H, W], weight [k, c, 3, 3], padding=1), channels last; differentiable once."""
    result: Tensor = _Winograd.apply(images, weight)
    return result


class WinogradConv2d(nn.Conv2d):
    """A `Conv2d` that computes by `winograd_conv2d`, except under autocast, where direct kernels are faster."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of [n, c, H, W]."""
        if torch.is_autocast_enabled(input.device.type):
            return super().forward(input)
        result = winograd_conv2d(input, self.weight)
        return result if self.bias is None else result + self.bias.view(-1, 1, 1)


def use_winograd(network: nn.Module) -> nn.Module:
    """Turn every convolution of `network` that can gain by it into a `WinogradConv2d`, in place; parameters stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _gains(module):
            module.__class__ = WinogradConv2d
    return network


def _gains(layer: nn.Conv2d) -> bool:
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    shaped = layer.kernel_size == (3, 3) and layer.padding in ((1, 1), "same")
    return plain and shaped and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor) -> Tensor:
        n, c, height, width = images.shape
        k = weight.shape[0]
        rows, columns = -(-height // _TILE), -(-width // _TILE)
        tiles = _input_tiles(images, rows, columns)
        v = (_transform("B", images.dtype) @ tiles).view(_INPUT**2, -1, c)
        u = (_transform("G", weight.dtype) @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(_INPUT**2, k, c)
        m = torch.bmm(v, u.transpose(1, 2))
        y = (_transform("A", m.dtype) @ m.view(_INPUT**2, -1)).view(_TILE, _TILE, n, rows, columns, k)
        y = y.permute(2, 3, 0, 4, 1, 5).reshape(n, rows * _TILE, columns * _TILE, k)
        ctx.save_for_backward(v if ctx.needs_input_grad[1] else None, u if ctx.needs_input_grad[0] else None)
        ctx.shape = (n, c, height, width, rows, columns)
        return y[:, :height, :width].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        v, u = ctx.saved_tensors
        n, c, height, width, rows, columns = ctx.shape
        k = gradient.shape[1]
        dy = _output_tiles(gradient, rows, columns)
        dm = (_transform("A", gradient.dtype).t() @ dy).view(_INPUT**2, -1, k)
        images = weight = None
        if u is not None:
            dv = torch.bmm(dm, u)
            tiles = _transform("B", dv.dtype).t() @ dv.view(_INPUT**2, -1)
            images = _fold(tiles.view(_INPUT, _INPUT, n, rows, columns, c), height, width)
        if v is not None:
            du = torch.bmm(dm.transpose(1, 2), v)
            weight = (_transform("G", du.dtype).t() @ du.view(_INPUT**2, -1)).view(3, 3, k, c).permute(2, 3, 0, 1)
        return images, weight


@functools.cache
def _transform(name: str, dtype: torch.dtype) -> Tensor:
    """Return B ⊗ B [36, 36], G ⊗ G [36, 9] or A ⊗ A [16, 36]."""
    one = torch.tensor(_TRANSFORMS[name], dtype=torch.float64)
    return torch.kron(one, one).to(dtype)


def _input_tiles(images: Tensor, rows: int, columns: int) -> Tensor:
    """Return the overlapping 6 × 6 tiles of the zero-padded images as [36, t·c]."""
    n, c, height, width = images.shape
    padded = images.new_zeros(n, rows * _TILE + _OVERLAP, columns * _TILE + _OVERLAP, c)
    padded[:, 1 : height + 1, 1 : width + 1] = images.permute(0, 2, 3, 1)
    tiles = padded.unfold(1, _INPUT, _TILE).unfold(2, _INPUT, _TILE)
    return tiles.permute(4, 5, 0, 1, 2, 3).reshape(_INPUT**2, -1)


def _output_tiles(gradient: Tensor, rows: int, columns: int) -> Tensor:
    """Return the 4 × 4 tiles of a gradient [n, k, H, W] as [16, t·k]; what lies beyond H × W is zero."""
    n, k, height, width = gradient.shape
    last = gradient.permute(0, 2, 3, 1)
    if (height, width) != (rows * _TILE, columns * _TILE):
        last = nn.functional.pad(last, (0, 0, 0, columns * _TILE - width, 0, rows * _TILE - height))
    return last.reshape(n, rows, _TILE, columns, _TILE, k).permute(2, 4, 0, 1, 3, 5).reshape(_TILE**2, -1)


def _fold(tiles: Tensor, height: int, width: int) -> Tensor:
    """Add overlapping tiles [6, 6, n, rows, columns, c] into images [n, c, H, W]: `_input_tiles` transposed."""
    _, _, n, rows, columns, c = tiles.shape
    tiles = tiles.permute(2, 3, 0, 4, 1, 5)
    whole = tiles.new_empty(n, rows + 1, _TILE, columns + 1, _TILE, c)
    whole[:, rows], whole[:, :, :, columns] = 0, 0
    whole[:, :rows, :, :columns] = tiles[:, :, :_TILE, :, :_TILE]
    whole[:, 1:, :_OVERLAP, :columns] += tiles[:, :, _TILE:, :, :_TILE]
    whole[:, :rows, :, 1:, :_OVERLAP] += tiles[:, :, :_TILE, :, _TILE:]
    whole[:, 1:, :_OVERLAP, 1:, :_OVERLAP] += tiles[:, :, _TILE:, :, _TILE:]
    padded = whole.view(n, (rows + 1) * _TILE, (columns + 1) * _TILE, c)
    return padded[:, 1 : height + 1, 1 : width + 1].permute(0, 3, 1, 2)
