"""A ConvNet's first level on a CPU as one product: convolution, BatchNorm, ReLU and 2 × 2 average pooling.

Images have few channels, so the convolution's output is many times larger than its input. Computed layer by layer, the
level spends its time moving that output through memory, five times forward and seven times backward. Here it never
exists as a whole. With p the 9·c values that a filter sees, μ and Σ their mean and covariance over the N pixels of the
batch,

    z = W p + b      mean(z) = W μ + b      var(z) = diag(W Σ Wᵀ)      γ ẑ + β = W′ p + b′

so BatchNorm's statistics are known before its input is, and normalisation becomes part of the filters:
W′ = γ/√(var + ε) W. The backward pass recomputes the input of ReLU piece by piece and adds each piece's part to
G = Σ (∂L/∂y) [pᵀ 1]. All gradients follow from G, with S its last column and
T = Σ (∂L/∂y) ẑ = diag(W Gᵀ − W μ Sᵀ)/√(var + ε):

    ∂L/∂γ = T      ∂L/∂β = S      ∂L/∂b = 0      ∂L/∂W = γ/√(var + ε) (G − S μᵀ − T/√(var + ε) W Σ)

In the forward pass, sums over pixels are float32 within an image and float64 across images; in the backward pass, G is
summed over the batch in float32. Both are closer to the exact values than the layers' own results. Only for a filter
whose output varies a thousand times less than the pixels is the variance off, by 2e-4.

Shapes: n images, c input and k output channels, K = 9·c + 1, R = n · H/2 · W/2 pooled pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cudd_core.models.batchnorm import remember_statistics
from cudd_core.models.frozen_batchnorm import FrozenBatchNorm2d

_VALUES = 2**18
"""Values of the convolution's output that exist at a time: few enough for caches, enough to hide Python's overhead."""


def fits(images: Tensor, convolution: nn.Module, norm: nn.Module) -> bool:
    """Return whether `first_level` may replace the two layers.

    It may on a CPU without autocast, for float images with even sides, if no hook is on the layers and no gradient is
    needed with respect to the images or, in eval mode, to the parameters.
    """
    if type(norm) not in (nn.BatchNorm2d, FrozenBatchNorm2d) or torch.is_autocast_enabled(images.device.type):
        return False
    both = (convolution, norm)
    watched = any(layer._forward_pre_hooks or layer._forward_hooks for layer in both)
    # With running statistics it can only predict: gradients are implemented for training mode alone.
    gradients = torch.is_grad_enabled() and (
        images.requires_grad
        or (not norm.training and any(p.requires_grad for layer in both for p in layer.parameters()))
    )
    even = images.shape[2] % 2 == images.shape[3] % 2 == 0
    return images.device.type == "cpu" and images.is_floating_point() and even and not watched and not gradients


def first_level(images: Tensor, convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """Return avg_pool2d(relu(norm(convolution(images))), 2) of [n, c, H, W], channels last: [n, k, H/2, W/2].

    The convolution is 3 × 3 with a bias and padding 1. Running statistics are updated as by `BatchNorm2d`.
    """
    weight, bias = convolution.weight, convolution.bias
    assert bias is not None
    if norm.training:
        pooled, mean, variance = _FirstLevel.apply(images, weight, bias, norm.weight, norm.bias, norm.eps)
        if norm.track_running_stats:
            remember_statistics(norm, mean, variance, images[:, 0].numel())
        result: Tensor = pooled
        return result
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    shift = norm.bias + scale * (bias.double() - norm.running_mean)
    with torch.no_grad():
        return _pooled(_patches(images), _folded(_rows(weight), scale, shift, images.dtype), images.shape)


class _FirstLevel(torch.autograd.Function):
    """Returns pooled [n, k, H/2, W/2], and mean [k] and biased variance [k] of the convolution's output, float64."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        patches, filters = _patches(images), _rows(weight)
        each = patches.view(-1, images[0, 0].numel() // 4, patches.shape[2])
        moments = torch.bmm(each.transpose(1, 2), each).double().sum(0) / images[:, 0].numel()
        mean = moments[-1, :-1]
        spread = filters @ (moments[:-1, :-1] - torch.outer(mean, mean))  # W Σ
        variance, centre = (spread * filters).sum(1).clamp_min(0), filters @ mean
        inverse = (variance + eps).rsqrt()
        folded = _folded(filters, gamma * inverse, beta - gamma * inverse * centre, images.dtype)
        ctx.save_for_backward(patches, folded, weight, gamma, mean, spread, centre, inverse)
        mean_of_output = centre + bias
        ctx.mark_non_differentiable(mean_of_output, variance)
        return _pooled(patches, folded, images.shape), mean_of_output, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        patches, folded, weight, gamma, mean, spread, centre, inverse = ctx.saved_tensors
        quarters = gradient.permute(0, 2, 3, 1).reshape(1, -1, weight.shape[0]) * 0.25
        sums = patches.new_zeros(4, patches.shape[2], weight.shape[0])
        for piece, values in _pieces(patches, folded):
            share = quarters[:, piece].expand_as(values)
            sums.baddbmm_(patches[:, piece].transpose(1, 2), torch.ops.aten.threshold_backward(share, values, 0))
        filters, total = _rows(weight), sums.double().sum(0).t()
        products, shift = total[:, :-1], total[:, -1]
        stretch = inverse * ((filters * products).sum(1) - centre * shift)
        rows = products - torch.outer(shift, mean) - (stretch * inverse)[:, None] * spread
        rows = (gamma * inverse)[:, None] * rows
        filters_gradient = rows.to(weight.dtype).view(-1, 3, 3, weight.shape[1]).permute(0, 3, 1, 2)
        # Normalisation removes any constant added to a channel, so the bias has no gradient.
        nothing = torch.zeros_like(gamma)
        return None, filters_gradient, nothing, stretch.to(gamma.dtype), shift.to(gamma.dtype), None


def _patches(images: Tensor) -> Tensor:
    """Return what the filter sees at every pixel, and a 1, as [4, R, K]; axis 0: the four pixels of a pooled one."""
    n, c, height, width = images.shape
    padded = nn.functional.pad(images.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    windows = padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3)
    windows = windows.view(n, height // 2, 2, width // 2, 2, 3, 3, c).permute(2, 4, 0, 1, 3, 5, 6, 7)
    patches = images.new_empty(*windows.shape[:5], 9 * c + 1)
    patches[..., :-1].view(windows.shape).copy_(windows)
    patches[..., -1] = 1
    return patches.view(4, -1, 9 * c + 1)


def _rows(weight: Tensor) -> Tensor:
    """Return filters [k, c, 3, 3] as rows [k, 9·c], float64, in the order of patches."""
    return weight.detach().permute(0, 2, 3, 1).reshape(weight.shape[0], -1).double()


def _folded(filters: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
    """Return [scale · W, shift] as [K, k]."""
    return torch.cat((filters * scale[:, None], shift[:, None]), 1).t().to(dtype).contiguous()


def _pieces(patches: Tensor, folded: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of pooled pixels and the normalised output [4, pixels, k] there, in a buffer that is reused."""
    rows, k = patches.shape[1], folded.shape[1]
    pixels = max(1, _VALUES // (4 * k))
    filters = folded.expand(4, -1, -1)
    buffer = patches.new_empty(4, min(pixels, rows), k)
    for start in range(0, rows, pixels):
        piece = slice(start, min(start + pixels, rows))
        part = buffer if piece.stop - start == buffer.shape[1] else patches.new_empty(4, piece.stop - start, k)
        yield piece, torch.bmm(patches[:, piece], filters, out=part)


def _pooled(patches: Tensor, folded: Tensor, shape: torch.Size) -> Tensor:
    """Return the level's output [n, k, H/2, W/2] for images of this `shape`."""
    n, _, height, width = shape
    pooled = patches.new_empty(patches.shape[1], folded.shape[1])
    for piece, values in _pieces(patches, folded):
        torch.mean(values.clamp_min_(0), 0, out=pooled[piece])
    return pooled.view(n, height // 2, width // 2, -1).permute(0, 3, 1, 2)
