"""Frozen BatchNorm layers with what stands beside them, for GPUs: one pass over memory forward, one backward.

For a channel with running mean μ and variance σ², weight γ and bias β, let s = γ/√(σ² + ε). From a batch x with N
values per channel, to which the bias b of the convolution before it is still to be added, this computes

    z = s x + (β + s (b − μ))      y = z,  max(z, 0),  its means over 2 × 2 pixels,  or  max(z + r, 0)
    m = b + Σ x/N                  v = Σ (x + b − m)²/N

reading x once. The backward pass, with 1[·] being 1 where ReLU lets values pass and 0 elsewhere,

    ∂L/∂x = s 1[·] ∂L/∂y + ∂L/∂m/N + 2 (x + b − m) ∂L/∂v/N

is one pass over memory, too, and computes z again instead of keeping it.

Import this only on a machine with a GPU: Triton comes only with torch for CUDA. Batches are [n, c, H, W], channels
last, of any float type up to float32, with at least one and fewer than 2³¹ values; they are N = n · H · W rows of c
channels. Everything is computed in float32, and what an image becomes does not depend on the others of its batch.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from cudd_core.compute.frozen_layer import After, Layer

_VALUES, _CHANNELS = 2048, 64
"""Values that a program has in hand at a time, and most of their channels: 16 values for each of its 128 threads."""

_PARTS = 1024
"""Most parts into which rows are divided to sum them; one program then combines the sums of a channel."""


def normalise(
    x: Tensor,
    layer: Layer,
    after: After = After.NOTHING,
    beside: Tensor | None = None,
    convolution_bias: Tensor | None = None,
) -> Tensor:
    """Return y, of x's type. Differentiable once, with respect to x and `beside`.

    `beside`: the features r to add for JOIN, of x's shape, type and layout. `convolution_bias`: b, [c], else 0. For
    POOL, sides are even.
    """
    result: Tensor = _Normalise.apply(x, beside, convolution_bias, layer, after, False)
    return result


def normalise_and_look(
    x: Tensor,
    layer: Layer,
    after: After = After.NOTHING,
    beside: Tensor | None = None,
    convolution_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y as `normalise` does, and the mean [c] and biased variance [c] of x + b, float32."""
    result: tuple[Tensor, Tensor, Tensor] = _Normalise.apply(x, beside, convolution_bias, layer, after, True)
    return result


def check(device: torch.device) -> None:
    """Build and run the kernels."""
    x, one = torch.zeros(1, 1, 2, 2, device=device), torch.ones(1, device=device)
    layer = Layer((one, one), one, one, 1.0)
    for after, beside in ((After.POOL, None), (After.JOIN, x)):
        output, mean, _ = _forward(x, beside, one, layer, after, look=True)
        assert mean is not None
        _backward(output, x.shape, x, output, one, layer, after, (mean, one, one))


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        beside: Tensor | None,
        convolution_bias: Tensor | None,
        layer: Layer,
        after: After,
        look: bool,
    ) -> Tensor | tuple[Tensor, Tensor | None, Tensor | None]:
        assert (after is After.JOIN) == (beside is not None)
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in (x, beside) if each is not None)
        output, mean, variance = _forward(x, beside, convolution_bias, layer, after, look)
        # Where ReLU let values pass follows from its input or, if other features were added, from the output.
        looked_at = look or after in (After.RELU, After.POOL)
        kept = (x if looked_at else None, output if after is After.JOIN else None)
        ctx.save_for_backward(*kept, convolution_bias, mean)
        ctx.layer, ctx.after, ctx.shape = layer, after, x.shape
        return (output, mean, variance) if look else output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *to_statistics: Tensor) -> tuple[Tensor | None, ...]:
        x, output, convolution_bias, mean = ctx.saved_tensors
        statistics = None if mean is None else (mean, *(each.contiguous() for each in to_statistics))
        grads = _backward(grad, ctx.shape, x, output, convolution_bias, ctx.layer, ctx.after, statistics)
        return *grads, None, None, None, None


def _forward(
    x: Tensor, beside: Tensor | None, convolution_bias: Tensor | None, layer: Layer, after: After, look: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return y and, if `look`, mean and variance."""
    n, channels, height, width = x.shape
    side = 2 if after is After.POOL else 1
    output = _empty(x, (n, channels, height // side, width // side))
    # Of a pooled pixel's values a program has all four in hand.
    rows, block = output.numel() // channels, _block(channels, _VALUES // side)
    tiles = triton.cdiv(rows, block["ROWS"])
    steps = triton.cdiv(tiles, _PARTS) if look else 1
    parts = triton.cdiv(tiles, steps)
    means = squares = mean = variance = None
    if look:
        means, squares = torch.empty(2, parts, channels, device=x.device).unbind()
        mean, variance = torch.empty(2, channels, device=x.device).unbind()
    with torch.cuda.device_of(x):
        _normalise[(parts, triton.cdiv(channels, block["CHANNELS"]))](
            *(x, beside, *layer.running, layer.weight, layer.bias, convolution_bias, output, means, squares),
            *(rows, width, channels, layer.eps, steps),
            RELU=after in (After.RELU, After.POOL),
            POOL=after is After.POOL,
            **block,
        )
        if look:
            rows_a_part = steps * block["ROWS"] * side**2
            _combine[(triton.cdiv(channels, 4),)](
                *(means, squares, mean, variance, parts, channels, rows * side**2, rows_a_part),
                PARTS=_PARTS,
                CHANNELS=4,
                num_warps=8,
            )
    return output, mean, variance


def _backward(
    grad: Tensor,
    shape: torch.Size,
    x: Tensor | None,
    output: Tensor | None,
    convolution_bias: Tensor | None,
    layer: Layer,
    after: After,
    statistics: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients to x, of this shape, and to the features beside it; `statistics`: m, ∂L/∂m and ∂L/∂v."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    to_x, to_beside = _empty(grad, shape), _empty(grad, shape) if after is After.JOIN else None
    channels, rows = shape[1], shape.numel() // shape[1]
    block = _block(channels, _VALUES)
    with torch.cuda.device_of(grad):
        _gradient[(triton.cdiv(rows, block["ROWS"]), triton.cdiv(channels, block["CHANNELS"]))](
            *(grad, x, output, *layer.running, layer.weight, layer.bias, convolution_bias),
            *(statistics or (None, None, None)),
            *(to_x, to_beside, rows, shape[3], channels, layer.eps, 1 / rows),
            RELU=after in (After.RELU, After.POOL),
            POOL=after is After.POOL,
            **block,
        )
    return to_x, to_beside


def _empty(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _block(channels: int, values: int) -> dict[str, int]:
    """Return how many rows and channels a program has in hand at a time."""
    block = min(_CHANNELS, triton.next_power_of_2(channels))
    return {"ROWS": values // block, "CHANNELS": block}


@triton.jit
def _affine(  # type: ignore[no-untyped-def]
    running_mean, running_variance, weight, bias, convolution_bias, channel, there, eps
):
    """Return scale and offset of z, and b."""
    added = tl.zeros(channel.shape, tl.float32)
    if convolution_bias is not None:
        added += tl.load(convolution_bias + channel, mask=there, other=0.0).to(tl.float32)
    variance = tl.load(running_variance + channel, mask=there, other=1.0)
    scale = tl.load(weight + channel, mask=there, other=0.0) / tl.sqrt(variance + eps)
    distance = added - tl.load(running_mean + channel, mask=there, other=0.0)
    return scale, tl.load(bias + channel, mask=there, other=0.0) + scale * distance, added


@triton.jit
def _source(row, pixel, width):  # type: ignore[no-untyped-def]
    """Return which row of x is one of the four pixels (0 to 3) of a row of pooled ones."""
    half = width // 2
    return (row // half * 2 + pixel // 2) * width + row % half * 2 + pixel % 2


@triton.jit  # type: ignore[untyped-decorator]
def _pixels(x, row, width, channels, inside, missing, POOL: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the rows of x of which each row of the output is made: all are asked for before any is needed."""
    if POOL:
        return (
            tl.load(x + (_source(row, 0, width) * channels)[:, None], mask=inside, other=missing),
            tl.load(x + (_source(row, 1, width) * channels)[:, None], mask=inside, other=missing),
            tl.load(x + (_source(row, 2, width) * channels)[:, None], mask=inside, other=missing),
            tl.load(x + (_source(row, 3, width) * channels)[:, None], mask=inside, other=missing),
        )
    else:
        return (tl.load(x + (row * channels)[:, None], mask=inside, other=missing),)


@triton.jit
def _relu(value):  # type: ignore[no-untyped-def]
    return tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)


# Sizes that vary would otherwise be compiled anew whenever one is 1 or becomes divisible by 16.
@triton.jit(do_not_specialize=["rows", "width", "steps"])  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    x,
    beside,
    running_mean,
    running_variance,
    weight,
    bias,
    convolution_bias,
    output,
    means,
    squares,
    rows,
    width,
    channels,
    eps,
    steps,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Take `steps` tiles of rows of the output. Distances are from one of the part's own values, lest sums cancel."""
    PIXELS: tl.constexpr = 4 if POOL else 1
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    scale, offset, added = _affine(running_mean, running_variance, weight, bias, convolution_bias, channel, there, eps)
    first = tl.program_id(0) * steps * ROWS
    missing = 0.0
    if means is not None:
        begin = first
        if POOL:
            begin = _source(first, 0, width)
        start = tl.load(x + begin * channels + channel, mask=there, other=0.0)
        # What is not there then has no distance.
        missing = start[None, :]
        total = tl.zeros((ROWS, CHANNELS), tl.float32)
        square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for step in range(steps):
        row = first + step * ROWS + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & there[None, :]
        pixels = _pixels(x + channel[None, :], row, width, channels, inside, missing, POOL)
        result = tl.zeros((ROWS, CHANNELS), tl.float32)
        for pixel in tl.static_range(PIXELS):
            value = pixels[pixel].to(tl.float32)
            if means is not None:
                distance = value - start.to(tl.float32)[None, :]
                total += distance
                square += distance * distance
            normalised = tl.fma(value, scale[None, :], offset[None, :])
            if RELU:
                normalised = _relu(normalised)
            result += normalised
        place = row[:, None] * channels + channel[None, :]
        if POOL:
            result *= 0.25
        if beside is not None:
            result += tl.load(beside + place, mask=inside, other=0.0).to(tl.float32)
            result = _relu(result)
        tl.store(output + place, result, mask=inside)
    if means is not None:
        count = (PIXELS * tl.minimum(rows - first, steps * ROWS)).to(tl.float32)
        away = tl.sum(total, 0)
        place = tl.program_id(0) * channels + channel
        tl.store(means + place, start.to(tl.float32) + added + away / count, mask=there)
        about = tl.sum(square, 0) - away * away / count
        tl.store(squares + place, tl.where(about < 0.0, 0.0, about), mask=there)


@triton.jit(do_not_specialize=["parts", "rows", "rows_a_part"])  # type: ignore[untyped-decorator]
def _combine(  # type: ignore[no-untyped-def]
    means,
    squares,
    mean,
    variance,
    parts,
    channels,
    rows,
    rows_a_part,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Combine the parts' means and squared distances from them into those of all rows (Chan et al., 1979)."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    part = tl.arange(0, PARTS)
    inside = (part < parts)[:, None] & there[None, :]
    place = part[:, None] * channels + channel[None, :]
    own = tl.load(means + place, mask=inside, other=0.0)
    square = tl.load(squares + place, mask=inside, other=0.0)
    count = tl.minimum(rows - part * rows_a_part, rows_a_part).to(tl.float32)[:, None]
    whole = tl.sum(own * count, 0) / rows
    distance = tl.where(inside, own - whole[None, :], 0.0)
    tl.store(mean + channel, whole, mask=there)
    tl.store(variance + channel, tl.sum(square + distance * distance * count, 0) / rows, mask=there)


@triton.jit(do_not_specialize=["rows", "width"])  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    grad,
    x,
    output,
    running_mean,
    running_variance,
    weight,
    bias,
    convolution_bias,
    mean,
    grad_mean,
    grad_variance,
    to_x,
    to_beside,
    rows,
    width,
    channels,
    eps,
    share,
    RELU: tl.constexpr,
    POOL: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Take a tile of rows of x; `share` is 1/N."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    scale, offset, added = _affine(running_mean, running_variance, weight, bias, convolution_bias, channel, there, eps)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = (row < rows)[:, None] & there[None, :]
    place = row[:, None] * channels + channel[None, :]
    source = row
    if POOL:
        source = row // width // 2 * (width // 2) + row % width // 2
    passed = tl.load(grad + source[:, None] * channels + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    if x is not None:
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    if POOL:
        passed *= 0.25
    if RELU:
        passed = tl.where(tl.fma(value, scale[None, :], offset[None, :]) <= 0.0, 0.0, passed)
    if to_beside is not None:
        passed = tl.where(tl.load(output + place, mask=inside, other=0.0) <= 0.0, 0.0, passed)
        tl.store(to_beside + place, passed, mask=inside)
    result = passed * scale[None, :]
    if mean is not None:
        centre = tl.load(mean + channel, mask=there, other=0.0) - added
        steady = tl.load(grad_mean + channel, mask=there, other=0.0) * share
        slope = tl.load(grad_variance + channel, mask=there, other=0.0) * (2.0 * share)
        result += tl.fma(value - centre[None, :], slope[None, :], steady[None, :])
    tl.store(to_x + place, result, mask=inside)
