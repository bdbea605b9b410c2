"""3×3 convolutions of stride 1 by Winograd's minimal filtering F(4×4, 3×3), for CPUs (Lavin & Gray 2016).

A tile of 4 × 4 outputs takes 36 products per pair of channels instead of 144. The transforms around them are small
matrix products too, so all of it runs at the speed of the CPU's matrix library, forward and backward: on CPUs without
bf16, where a network's time is its multiplications, a ConvNet trains in about 60 % of the time (docs/performance.md).

    V = B (x) Bᵀ of every 6 × 6 input tile,   U = G (w) Gᵀ,   M[ξ] = V[ξ] U[ξ]ᵀ for each of 36 ξ,   y = Aᵀ (M) A

With the two transforms of a tile written as one Kronecker product each, they act on all its channels at once, and on
a part of the tiles at a time.
In float32 the result differs from the direct one by about 1e-5 of its largest value.

Shapes: n images, c input and k output channels, t = tiles of all images.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
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

_LEAST_TILES, _TILES_PER_CHANNEL = 128, 2
"""Tiles that are worked on at a time: at least so many, and so many for each channel, since what is larger leaves the
caches between one transform and the next, and products of matrices that are smaller run at less than full speed."""


def winograd_conv2d(images: Tensor, weight: Tensor) -> Tensor:
    """Return conv2d(images [n, c, H, W], weight [k, c, 3, 3], padding=1), channels last; differentiable once."""
    result: Tensor = _Winograd.apply(images, weight)
    return result


def tiles_at_a_time(height: int, width: int, channels: int) -> tuple[int, int]:
    """Return the values in the tiles of one image, for each channel, and how many images are worked on at a time."""
    cut = _Cut(height, width)
    return cut.tiles * _INPUT**2, cut.together(channels)


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
        cut = _Cut(height, width)
        u = (_transform("G", weight.dtype) @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(_INPUT**2, k, c)
        kept = images.new_empty(n * cut.tiles, _INPUT**2, c) if ctx.needs_input_grad[1] else None
        y = images.new_empty(n, cut.rows * _TILE, cut.columns * _TILE, k)
        for some in cut.parts(n, c):
            v = _transformed("B", cut.input_tiles(images[some]), out=cut.tiles_of(some, kept))
            m = torch.bmm(v.transpose(0, 1), u.transpose(1, 2))
            cut.put(_transformed("A", m.transpose(0, 1)), y[some])
        ctx.save_for_backward(kept, u if ctx.needs_input_grad[0] else None)
        ctx.shape = n, c, height, width
        return y[:, :height, :width].permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        v, u = ctx.saved_tensors
        n, c, height, width = ctx.shape
        k = gradient.shape[1]
        cut = _Cut(height, width)
        kept = gradient.new_empty(n * cut.tiles, _INPUT**2, k) if v is not None else None
        images = gradient.new_empty(n, height, width, c).permute(0, 3, 1, 2) if u is not None else None
        for some in cut.parts(n, max(c, k)):
            dm = _transformed("A", cut.output_tiles(gradient[some]), back=True, out=cut.tiles_of(some, kept))
            if images is not None:
                dv = torch.bmm(dm.transpose(0, 1), u)
                images[some] = cut.folded(_transformed("B", dv.transpose(0, 1), back=True))
        weight = None
        if kept is not None:
            du = torch.bmm(kept.permute(1, 2, 0), v.transpose(0, 1))
            weight = (_transform("G", du.dtype).t() @ du.view(_INPUT**2, -1)).view(3, 3, k, c).permute(2, 3, 0, 1)
        return images, weight


@functools.cache
def _transform(name: str, dtype: torch.dtype) -> Tensor:
    """Return B ⊗ B [36, 36], G ⊗ G [36, 9] or A ⊗ A [16, 36]."""
    one = torch.tensor(_TRANSFORMS[name], dtype=torch.float64)
    return torch.kron(one, one).to(dtype)


def _transformed(name: str, tiles: Tensor, back: bool = False, out: Tensor | None = None) -> Tensor:
    """Transform every tile of [t, values, channels], or go `back`: a small product for each, of what lies together."""
    transform = _transform(name, tiles.dtype)
    return torch.matmul(transform.t() if back else transform, tiles, out=out)


class _Cut:
    """How images of a size are cut into tiles, [t, values of a tile, channels], and put together again.

    `rows`, `columns` and `tiles` of one image, which may reach beyond its right and lower edge.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.rows, self.columns = -(-height // _TILE), -(-width // _TILE)
        self.tiles = self.rows * self.columns

    def parts(self, n: int, channels: int) -> Iterator[slice]:
        """Go through n images, as many at a time as stay in the caches and fill the products of matrices."""
        together = self.together(channels)
        return (slice(start, start + together) for start in range(0, n, together))

    def together(self, channels: int) -> int:
        """Return how many images are worked on at a time."""
        return max(1, max(_LEAST_TILES, _TILES_PER_CHANNEL * channels) // self.tiles)

    def tiles_of(self, some: slice, kept: Tensor | None) -> Tensor | None:
        """Return the tiles of some images among those of all, if these are kept."""
        return None if kept is None else kept[some.start * self.tiles : some.stop * self.tiles]

    def input_tiles(self, images: Tensor) -> Tensor:
        """Return the overlapping 6 × 6 tiles of images [n, c, H, W], with zeros around them."""
        n, c = images.shape[:2]
        padded = images.new_zeros(n, self.rows * _TILE + _OVERLAP, self.columns * _TILE + _OVERLAP, c)
        padded[:, 1 : self.height + 1, 1 : self.width + 1] = images.permute(0, 2, 3, 1)
        image, row, column, _ = padded.stride()
        strides = (image, _TILE * row, _TILE * column, row, column, 1)
        tiles = padded.as_strided((n, self.rows, self.columns, _INPUT, _INPUT, c), strides)
        return tiles.reshape(-1, _INPUT**2, c)

    def output_tiles(self, gradient: Tensor) -> Tensor:
        """Return the 4 × 4 tiles of a gradient [n, k, H, W]; what lies beyond H × W is zero."""
        n, k = gradient.shape[:2]
        last = gradient.permute(0, 2, 3, 1)
        right, below = self.columns * _TILE - self.width, self.rows * _TILE - self.height
        if right or below:
            last = nn.functional.pad(last, (0, 0, 0, right, 0, below))
        tiles = last.reshape(n, self.rows, _TILE, self.columns, _TILE, k).transpose(2, 3)
        return tiles.reshape(-1, _TILE**2, k)

    def put(self, tiles: Tensor, images: Tensor) -> None:
        """Put 4 × 4 tiles where they belong in images [n, H, W, k], whole tiles high and wide."""
        n, k = len(images), images.shape[-1]
        places = images.view(n, self.rows, _TILE, self.columns, _TILE, k).transpose(2, 3)
        places.copy_(tiles.view(n, self.rows, self.columns, _TILE, _TILE, k))

    def folded(self, tiles: Tensor) -> Tensor:
        """Add overlapping 6 × 6 tiles into images [n, c, H, W]: `input_tiles` transposed."""
        rows, columns, c = self.rows, self.columns, tiles.shape[-1]
        tiles = tiles.view(-1, rows, columns, _INPUT, _INPUT, c).transpose(2, 3)
        whole = tiles.new_empty(len(tiles), rows + 1, _TILE, columns + 1, _TILE, c)
        whole[:, rows], whole[:, :, :, columns] = 0, 0
        whole[:, :rows, :, :columns] = tiles[:, :, :_TILE, :, :_TILE]
        whole[:, 1:, :_OVERLAP, :columns] += tiles[:, :, _TILE:, :, :_TILE]
        whole[:, :rows, :, 1:, :_OVERLAP] += tiles[:, :, :_TILE, :, _TILE:]
        whole[:, 1:, :_OVERLAP, 1:, :_OVERLAP] += tiles[:, :, _TILE:, :, _TILE:]
        padded = whole.view(-1, (rows + 1) * _TILE, (columns + 1) * _TILE, c)
        return padded[:, 1 : self.height + 1, 1 : self.width + 1].permute(0, 3, 1, 2)
