"""Frozen BatchNorm layers fused with what follows them, for CPUs: one pass over memory forward, one backward.

For a channel with running mean μ and variance σ², weight γ and bias β, let s = γ/√(σ² + ε) and t = β − s μ. From a
batch x with N values per channel this computes

    z = s x + t          y = z,  max(z, 0),  its means over 2 × 2 pixels,  or  max(z + r, 0)
    m = μ + Σ (x − μ)/N  v = Σ (x − μ)²/N − (m − μ)²

reading x once. The backward pass, with 1[·] being 1 where ReLU lets values pass and 0 elsewhere,

    ∂L/∂x = s 1[·] ∂L/∂y + ∂L/∂m/N + 2 (x − m) ∂L/∂v/N

is one pass over memory, too. Separate layers take seven passes, and such passes take nearly half of a network's time
(docs/performance.md). m and v are summed in the batch's type within an image, and in float64 over images.

Shapes: x and r [n, c, H, W], channels last.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cudd_core.compute.cpu.compiled import TYPES, Int, at, library, rows_of
from cudd_core.compute.cpu.threads import in_parts
from cudd_core.compute.frozen_layer import After, Layer

_VECTOR_BYTES = 32
_SOURCE = "batchnorm.c"


def is_built(dtype: torch.dtype) -> bool:
    """Return whether batchnorm.c is available on this machine for values of `dtype`, float32 or float64."""
    return library(_SOURCE, dtype) is not None


def fits(x: Tensor) -> bool:
    """Return whether batchnorm.c can process the batch here: on a CPU, channels a multiple of 8 (float64: of 4)."""
    shaped = x.dim() == 4 and x.numel() > 0 and x.shape[1] * x.element_size() % _VECTOR_BYTES == 0
    return x.device.type == "cpu" and shaped and x.dtype in TYPES and is_built(x.dtype)


def normalise(x: Tensor, layer: Layer, after: After = After.NOTHING, beside: Tensor | None = None) -> Tensor:
    """Return y; `beside`: the features to add for JOIN. Differentiable once, with respect to x and `beside`.

    Raises:
        ValueError: the layer has another number of channels than x, or `beside` another shape or type.
    """
    result: Tensor = _Normalise.apply(x, beside, *layer.affine(), None, after)
    return result


def normalise_and_look(
    x: Tensor, layer: Layer, after: After = After.NOTHING, beside: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y as `normalise` does, and the batch's own mean [c] and biased variance [c], of x's type."""
    result: tuple[Tensor, Tensor, Tensor] = _Normalise.apply(x, beside, *layer.affine(), layer.running[0], after)
    return result


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, beside: Tensor | None, scale: Tensor, shift: Tensor, centre: Tensor | None, after: After
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        n, channels, height, width = x.shape
        if len(scale) != channels or (beside is not None and (beside.shape, beside.dtype) != (x.shape, x.dtype)):
            raise ValueError(
                f"{len(scale)} channels are normalised, not {list(x.shape)} {x.dtype}, and other features are alike"
            )
        rows = rows_of(x)
        side = 2 if after is After.POOL else 1
        # Not a view: torch would not let activations change that in place.
        output = _empty(x, n, channels, height // side, width // side)
        sums = None if centre is None else rows.new_empty(n, 2, channels)
        scale, shift, centre = (None if v is None else v.to(rows.dtype) for v in (scale, shift, centre))  # type: ignore[assignment]
        values = _Parameters.of(scale, shift, centre, None, None)
        code, shape, others = (
            library(_SOURCE, rows.dtype),
            _Shape(*rows.shape[1:]),
            None if beside is None else rows_of(beside),
        )
        assert code is not None and (after is After.JOIN) == (others is not None)

        def some(start: int, stop: int) -> None:
            images = (int(after), Int(stop - start), shape, at(rows, start), at(others, start))
            code.cudd_batchnorm(*images, values, at(sums, start), at(output, start))

        in_parts(some, n)
        # Where ReLU let values pass follows from its input or, if other features were added, from the output.
        looked_at = centre is not None or after in (After.RELU, After.POOL)
        kept = (rows if looked_at else None, output if after is After.JOIN else None)
        ctx.after, ctx.shape = after, x.shape
        if sums is None:
            ctx.save_for_backward(*kept, scale, shift, None)
            return output
        assert centre is not None
        distance, square = sums.double().sum(0) / (n * height * width)
        mean, variance = centre.double() + distance, (square - distance.square()).clamp_min(0)
        ctx.save_for_backward(*kept, scale, shift, mean)
        return output, mean.to(rows.dtype), variance.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, to_mean: Tensor | None = None, to_variance: Tensor | None = None
    ) -> tuple[Tensor | None, ...]:
        rows, output, scale, shift, mean = ctx.saved_tensors
        passed, (n, channels, height, width) = rows_of(gradient), ctx.shape
        slope = offset = None
        if mean is not None:
            assert to_mean is not None and to_variance is not None
            count = n * height * width
            steepness = to_variance.double() * (2 / count)
            slope = steepness.to(scale.dtype)
            offset = (to_mean.double() / count - steepness * mean).to(scale.dtype)
        values = _Parameters.of(scale, shift, None, slope, offset)
        joined = ctx.after is After.JOIN
        to_x, to_beside = _empty(gradient, *ctx.shape), _empty(gradient, *ctx.shape) if joined else None
        outputs = rows_of(output) if joined else None
        code, shape = library(_SOURCE, passed.dtype), _Shape(height, width, channels)
        assert code is not None

        def some(start: int, stop: int) -> None:
            images = (int(ctx.after), Int(stop - start), shape, at(rows, start), at(outputs, start))
            made = (at(passed, start), at(to_x, start), at(to_beside, start))
            code.cudd_batchnorm_back(*images, values, *made)

        in_parts(some, n)
        return to_x, to_beside, None, None, None, None


def _empty(like: Tensor, *shape: int) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, memory_format=torch.channels_last)


class _Shape(ctypes.Structure):
    _fields_ = tuple((name, Int) for name in ("h", "w", "channels"))


class _Parameters(ctypes.Structure):
    """Addresses of per-channel values. The caller must keep the tensors alive."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("scale", "shift", "centre", "slope", "offset"))

    @classmethod
    def of(cls, *values: Tensor | None) -> _Parameters:
        return cls(*(None if value is None else value.data_ptr() for value in values))
