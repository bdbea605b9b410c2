"""3×3 convolutions of stride 1 by Winograd's minimal filtering F(4×4, 3×3), for CPUs (Lavin & Gray 2016).

A tile of 4 × 4 outputs takes 36 products per pair of channels instead of 144. On CPUs without bf16, where
multiplications dominate a network's time, a ConvNet trains in half the time or less (docs/performance.md).

    V = Bᵀ (x) B of every 6 × 6 input tile,   U = G (w) Gᵀ,   M[ξ] = V[ξ] U[ξ]ᵀ for each of 36 ξ,   y = Aᵀ (M) A

The gradient to the images is the convolution of the output's gradient with the filters rotated by 180°, computed in the
same way; the gradient to the filters is Gᵀ (Σ M′[ξ]ᵀ V[ξ]) G with M′ = A (∂L/∂y) Aᵀ. winograd.c computes both; without
a C compiler, torch's direct kernels do. In float32 the result differs from the direct one by about 1e-5 of its largest
value.

Shapes: n images, c input and k output channels.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cudd_core.compute.cpu.compiled import TYPES, Int, at, library, rows_of
from cudd_core.compute.cpu.threads import in_parts

_CHANNELS, _TILE = 16, 4
"""Units of winograd.c: channels must be a multiple of the first; images narrower than the second gain nothing."""

_SOURCE = "winograd.c"


def winograd_conv2d(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return conv2d(images [n, c, H, W], weight [k, c, 3, 3], bias [k], padding=1), channels last.

    Takes at least one image, on a CPU, with all tensors in float32 or all in float64. Differentiable once.

    Raises:
        ValueError: shapes, types or devices do not fit, or c or k is not a multiple of 16.
        RuntimeError: there is no C compiler; `is_built` tells in advance.
        MemoryError: not enough memory for the transformed tiles and filters.
    """
    if not _computable(images, weight, bias):
        raise ValueError(
            f"images {list(images.shape)} {images.dtype}, filters {list(weight.shape)} {weight.dtype}: expected were "
            f"n > 0 images on a CPU, c and k multiples of {_CHANNELS}, and one type"
        )
    result: Tensor = _Winograd.apply(images, weight, bias)
    return result


def is_built(dtype: torch.dtype) -> bool:
    """Return whether winograd.c is available on this machine for values of `dtype`, float32 or float64."""
    return library(_SOURCE, dtype) is not None


def working_bytes(layer: nn.Conv2d) -> int:
    """Return the bytes of a layer's transformed filters: most of the memory that a wide layer needs per thread."""
    return 36 * layer.in_channels * layer.out_channels * layer.weight.element_size()


class WinogradConv2d(nn.Conv2d):
    """A `Conv2d` that uses `winograd_conv2d` where possible, except under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of [n, c, H, W]."""
        if not self._gains(input):
            return super().forward(input)
        return winograd_conv2d(input, self.weight, self.bias)

    def _gains(self, images: Tensor) -> bool:
        can = _computable(images, self.weight, self.bias) and min(images.shape[2:]) >= _TILE
        return can and not torch.is_autocast_enabled("cpu") and is_built(images.dtype)


def use_winograd(network: nn.Module) -> nn.Module:
    """Turn every convolution of `network` that fits into a `WinogradConv2d`, in place; parameters stay the same."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = WinogradConv2d
    return network


def _computable(images: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether shapes, types and devices are what winograd.c assumes without checking."""
    n, c, *sides = images.shape if images.dim() == 4 else (0, 0)
    k, *filters = weight.shape
    tensors = (images, weight) if bias is None else (images, weight, bias)
    alike = all(x.device.type == "cpu" and x.dtype == images.dtype for x in tensors) and images.dtype in TYPES
    alike &= bias is None or bias.shape == (k,)
    return alike and n > 0 and all(sides) and filters == [c, 3, 3] and c % _CHANNELS == k % _CHANNELS == 0


def _fits(layer: nn.Conv2d) -> bool:
    plain = layer.stride == layer.dilation == (1, 1) and layer.groups == 1 and layer.padding_mode == "zeros"
    shaped = layer.kernel_size == (3, 3) and layer.padding in ((1, 1), "same")
    return plain and shaped and layer.in_channels % _CHANNELS == layer.out_channels % _CHANNELS == 0


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(images if ctx.needs_input_grad[1] else None, weight)
        return _convolved(images, weight, bias, turned=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        images, weight = ctx.saved_tensors
        to_images = _convolved(gradient, weight, None, turned=True) if ctx.needs_input_grad[0] else None
        to_weight = None if images is None else _filters_gradient(images, gradient)
        return to_images, to_weight, gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None


def _convolved(images: Tensor, weight: Tensor, bias: Tensor | None, turned: bool) -> Tensor:
    """Convolve images with the filters or, if `turned`, output gradients with the rotated filters: image gradients."""
    rows = rows_of(images)
    n, height, width, inputs = rows.shape
    outputs = weight.shape[turned]
    first = weight.data_ptr()
    to_output, to_input, to_row, to_column = weight.stride()
    if turned:
        first += 2 * (to_row + to_column) * weight.element_size()
        to_output, to_input, to_row, to_column = to_input, to_output, -to_row, -to_column
    filters = _Filters(first, to_output, to_input, to_row, to_column)
    code = _code(weight.dtype)
    shift = None if bias is None else bias.contiguous()
    # Not a view: torch would not let activations change that in place.
    result = torch.empty(n, outputs, height, width, dtype=images.dtype, memory_format=torch.channels_last)

    def some(start: int, stop: int) -> bool:
        size = (Int(stop - start), Int(height), Int(width), Int(inputs))
        to = (ctypes.c_void_p(None if shift is None else shift.data_ptr()), at(result, start))
        return bool(code.cudd_convolve(at(rows, start), *size, filters, Int(outputs), *to))

    _enough(in_parts(some, n))
    return result


def _filters_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    rows, gradients = rows_of(images), rows_of(gradient)
    n, height, width, inputs = rows.shape
    outputs = gradients.shape[3]
    code = _code(images.dtype)
    parts: dict[int, Tensor] = {}

    def some(start: int, stop: int) -> bool:
        parts[start] = part = images.new_empty(outputs, 3, 3, inputs)
        size = (Int(stop - start), Int(height), Int(width), Int(inputs))
        of = (at(gradients, start), Int(outputs))
        return bool(code.cudd_filters_gradient(at(rows, start), *size, *of, at(part)))

    _enough(in_parts(some, n))
    first, *others = (part for _, part in sorted(parts.items()))
    for other in others:
        first += other
    return first.permute(0, 3, 1, 2)


class _Filters(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("to_output", Int), ("to_input", Int), ("to_row", Int), ("to_column", Int))


def _code(dtype: torch.dtype) -> ctypes.CDLL:
    found = library(_SOURCE, dtype)
    if found is None:
        raise RuntimeError("winograd.c cannot be compiled here: install a C compiler, or name one in CC")
    return found


def _enough(memory: list[bool]) -> None:
    if not all(memory):
        raise MemoryError("not enough memory for a convolution; lower the batch size")
