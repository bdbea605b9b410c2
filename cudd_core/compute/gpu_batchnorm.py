"""GPU kernels for frozen BatchNorm layers: one pass over a batch each way, where torch takes several.

Import this only on a machine with a GPU: Triton comes only with torch for CUDA. Batches are [n, c, H, W], channels
last, with fewer than 2³¹ values; they are N = n · H · W rows of c channels. Everything is computed in float32.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES, _ROWS, _CHANNELS = 1024, 128, 64


def normalise(
    x: Tensor, running_mean: Tensor, running_variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return BatchNorm's output with running statistics, and the batch's own mean [c] and biased variance [c].

    Mean and squares are summed over 256 rows at a time and then combined (Chan et al., 1979), to avoid cancellation.
    """
    channels, rows = x.shape[1], x.numel() // x.shape[1]
    result = torch.empty_like(x)
    parts = triton.cdiv(rows, 2 * _ROWS)
    means, squares = torch.empty(2, parts, channels, device=x.device).unbind()
    mean, variance = torch.empty(2, channels, device=x.device).unbind()
    with torch.cuda.device_of(x):
        _normalise[(parts, triton.cdiv(channels, _CHANNELS))](
            *(x, running_mean, running_variance, weight, bias, result, means, squares, rows, channels, eps),
            ROWS=_ROWS,
            CHANNELS=_CHANNELS,
            num_warps=8,
        )
        _combine[(triton.cdiv(channels, 16),)](
            *(means, squares, mean, variance, parts, rows, channels, 2 * _ROWS), PARTS=128, CHANNELS=16
        )
    return result, mean, variance


def gradient(
    grad: Tensor,
    running_variance: Tensor,
    weight: Tensor,
    eps: float,
    statistics: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """Return ∂output/∂x · grad; with `statistics`, (x, mean, grad_mean, grad_variance), plus the part through them.

    Both parts together are grad · weight / √(running variance + ε) + grad_mean / N + 2 (x − mean) · grad_variance / N.
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    result = torch.empty_like(grad)
    channels, total = grad.shape[1], grad.numel()
    x, mean, grad_mean, grad_variance = statistics or (grad, weight, weight, weight)
    with torch.cuda.device_of(grad):
        _gradient[(triton.cdiv(total, _VALUES),)](
            *(grad, running_variance, weight, eps, x, mean, grad_mean, grad_variance, result),
            *(total, channels, channels / total),
            WATCHED=statistics is not None,
            VALUES=_VALUES,
        )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _normalise(  # type: ignore[no-untyped-def]
    x,
    running_mean,
    running_variance,
    weight,
    bias,
    result,
    means,
    squares,
    rows,
    channels,
    eps,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    part = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    scale = tl.load(weight + channel, mask=there) / tl.sqrt(tl.load(running_variance + channel, mask=there) + eps)
    shift = tl.load(bias + channel, mask=there) - scale * tl.load(running_mean + channel, mask=there)
    mean = tl.zeros((CHANNELS,), tl.float32)
    square = tl.zeros((CHANNELS,), tl.float32)
    for half in tl.static_range(2):
        first = (2 * part + half) * ROWS
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & there[None, :]
        place = row[:, None] * channels + channel[None, :]
        value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(result + place, value * scale[None, :] + shift[None, :], mask=inside)
        count = tl.minimum(tl.maximum(rows - first, 0), ROWS).to(tl.float32)
        before = half * ROWS * 1.0
        own_mean = tl.sum(value, 0) / tl.maximum(count, 1.0)
        distance = tl.where(inside, value - own_mean[None, :], 0.0)
        difference = own_mean - mean
        share = count / tl.maximum(before + count, 1.0)
        mean += difference * share
        square += tl.sum(distance * distance, 0) + difference * difference * before * share
    tl.store(means + part * channels + channel, mean, mask=there)
    tl.store(squares + part * channels + channel, square, mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _combine(  # type: ignore[no-untyped-def]
    means,
    squares,
    mean,
    variance,
    parts,
    rows,
    channels,
    rows_a_part,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    there = channel < channels
    total = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & there[None, :]
        count = tl.minimum(tl.maximum(rows - part * rows_a_part, 0), rows_a_part).to(tl.float32)
        own = tl.load(means + part[:, None] * channels + channel[None, :], mask=inside, other=0.0)
        total += tl.sum(own * count[:, None], 0)
    whole = total / rows
    square = tl.zeros((CHANNELS,), tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < parts)[:, None] & there[None, :]
        count = tl.minimum(tl.maximum(rows - part * rows_a_part, 0), rows_a_part).to(tl.float32)
        place = part[:, None] * channels + channel[None, :]
        distance = tl.load(means + place, mask=inside, other=0.0) - whole[None, :]
        own = tl.load(squares + place, mask=inside, other=0.0) + distance * distance * count[:, None]
        square += tl.sum(tl.where(inside, own, 0.0), 0)
    tl.store(mean + channel, whole, mask=there)
    tl.store(variance + channel, square / rows, mask=there)


@triton.jit  # type: ignore[untyped-decorator]
def _gradient(  # type: ignore[no-untyped-def]
    grad,
    running_variance,
    weight,
    eps,
    x,
    mean,
    grad_mean,
    grad_variance,
    result,
    total,
    channels,
    share,
    WATCHED: tl.constexpr,
    VALUES: tl.constexpr,
):
    place = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    inside = place < total
    channel = place % channels
    scale = tl.load(weight + channel, mask=inside) / tl.sqrt(tl.load(running_variance + channel, mask=inside) + eps)
    value = tl.load(grad + place, mask=inside).to(tl.float32) * scale
    if WATCHED:
        distance = tl.load(x + place, mask=inside).to(tl.float32) - tl.load(mean + channel, mask=inside)
        slope = tl.load(grad_variance + channel, mask=inside)
        value += (tl.load(grad_mean + channel, mask=inside) + 2.0 * distance * slope) * share
    tl.store(result + place, value, mask=inside)
