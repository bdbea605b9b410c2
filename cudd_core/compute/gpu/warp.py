"""GPU kernels for one view of images and of their originals: both warps, their squared error, one gradient.

Import this only on a machine with a GPU: Triton comes only with torch for CUDA. Images are [n, C, H, W], channels last,
square, of at most `LARGEST` pixels a side: a program holds whole channels. Everything is computed in float32.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

LARGEST = 64


def warp(
    images: Tensor, originals: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return A_y X A_xᵀ of float32 `images` twice, and how far that is from the same view of `originals`.

    `rows` (A_y) and `columns` (A_x), float32 [n or 1, H, W]. The views have `dtype` and are equal; two of them, so that
    networks on two streams (`cudd_core.compute.lanes.aside`) do not share a gradient. The distance is the mean squared
    error over all values, a float32 scalar. All three are differentiable in `images`.
    """
    first, second, error = _Warp.apply(images, originals, rows, columns, dtype)
    return first, second, error


class _Warp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, originals: Tensor, rows: Tensor, columns: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        n, channels, size, _ = images.shape
        first, second = (torch.empty_like(images, dtype=dtype) for _ in range(2))
        difference, errors = torch.empty_like(images), images.new_empty(n * channels)
        with torch.cuda.device_of(images):
            _forward[(n * channels,)](
                *(images, originals, rows, columns, first, second, difference, errors),
                images.numel(),
                **_shape(rows, channels, size),
            )
        ctx.save_for_backward(difference, rows, columns)
        ctx.set_materialize_grads(False)
        return first, second, errors.sum()

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_first: Tensor | None, of_second: Tensor | None, of_error: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        difference, rows, columns = ctx.saved_tensors
        n, channels, size, _ = difference.shape
        result = torch.empty_like(difference)
        views = [
            each.contiguous(memory_format=torch.channels_last) for each in (of_first, of_second) if each is not None
        ]
        first, second = [*views, difference, difference][:2]
        with torch.cuda.device_of(difference):
            _backward[(n * channels,)](
                *(first, second, of_error, difference, rows, columns, result),
                difference.numel(),
                VIEWS=len(views),
                ERROR=of_error is not None,
                **_shape(rows, channels, size),
            )
        return result, None, None, None, None


def _shape(rows: Tensor, channels: int, size: int) -> dict[str, int]:
    block = max(16, triton.next_power_of_2(size))
    warps = 4 if block <= 32 else 8
    return {"EACH": len(rows) > 1, "CHANNELS": channels, "SIZE": size, "BLOCK": block, "num_warps": warps}


def check(device: torch.device) -> None:
    """Build and run the kernels."""
    images = torch.ones(1, 1, 2, 2, device=device, requires_grad=True)
    matrix = torch.eye(2, device=device)[None]
    first, second, error = warp(images, images.detach(), matrix, matrix, torch.float32)
    (first.sum() + second.sum() + error).backward()


@triton.jit  # type: ignore[untyped-decorator]
def _matrix(  # type: ignore[no-untyped-def]
    matrices, image, TRANSPOSED: tl.constexpr, EACH: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Return an image's matrix, or its transpose, padded with zeros."""
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    place = j * SIZE + i if TRANSPOSED else i * SIZE + j
    if EACH:
        place += image * SIZE * SIZE
    return tl.load(matrices + place, mask=(i < SIZE) & (j < SIZE), other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _pixels(  # type: ignore[no-untyped-def]
    image, channel, CHANNELS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    """Return where the pixels of an image's channel lie in memory, and which of a block's places are pixels."""
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    return ((image * SIZE + i) * SIZE + j) * CHANNELS + channel, (i < SIZE) & (j < SIZE)


@triton.jit
def _product(left, middle, right):  # type: ignore[no-untyped-def]
    return tl.dot(tl.dot(left, middle, input_precision="ieee"), right, input_precision="ieee")


# A crop's matrices may lie anywhere in those of several steps: with every alignment the same kernel.
@triton.jit(do_not_specialize_on_alignment=["rows", "columns"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    images,
    originals,
    rows,
    columns,
    first,
    second,
    difference,
    errors,
    values,
    EACH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    image = program // CHANNELS
    place, inside = _pixels(image, program % CHANNELS, CHANNELS, SIZE, BLOCK)
    left = _matrix(rows, image, False, EACH, SIZE, BLOCK)
    right = _matrix(columns, image, True, EACH, SIZE, BLOCK)
    view = _product(left, tl.load(images + place, mask=inside, other=0.0), right)
    distance = view - _product(left, tl.load(originals + place, mask=inside, other=0.0), right)
    tl.store(first + place, view, mask=inside)
    tl.store(second + place, view, mask=inside)
    tl.store(difference + place, distance, mask=inside)
    tl.store(errors + program, tl.sum(tl.sum(distance * distance, 1), 0) / values)


@triton.jit(do_not_specialize_on_alignment=["rows", "columns"])  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    of_first,
    of_second,
    of_error,
    difference,
    rows,
    columns,
    result,
    values,
    VIEWS: tl.constexpr,
    ERROR: tl.constexpr,
    EACH: tl.constexpr,
    CHANNELS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    image = program // CHANNELS
    place, inside = _pixels(image, program % CHANNELS, CHANNELS, SIZE, BLOCK)
    grad = tl.zeros((BLOCK, BLOCK), tl.float32)
    if VIEWS > 0:
        grad += tl.load(of_first + place, mask=inside, other=0.0).to(tl.float32)
    if VIEWS > 1:
        grad += tl.load(of_second + place, mask=inside, other=0.0).to(tl.float32)
    if ERROR:
        grad += tl.load(of_error) * 2.0 / values * tl.load(difference + place, mask=inside, other=0.0)
    left = _matrix(rows, image, True, EACH, SIZE, BLOCK)
    right = _matrix(columns, image, False, EACH, SIZE, BLOCK)
    tl.store(result + place, _product(left, grad, right), mask=inside)
