"""L_bn of Eq. 4: draws batch statistics towards those of the original data that BatchNorm has stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Statistics = Sequence[tuple[Tensor, Tensor]]
"""(mean [c], biased variance [c]) of every BatchNorm layer's input."""


def bn_alignment(batch: Statistics, target: Statistics, first_factor: float = 1.0) -> Tensor:
    """Return Σ_l w_l (‖μ_l − μ̂_l‖₂ + ‖σ²_l − σ̂²_l‖₂), a scalar; w is `first_factor` for the first layer, else 1.

    Zero exactly when all statistics agree; the gradient there is taken as zero.
    """
    total = torch.zeros((), device=batch[0][0].device, dtype=batch[0][0].dtype)
    for index, ((mean, variance), (target_mean, target_variance)) in enumerate(zip(batch, target, strict=True)):
        distance = torch.linalg.vector_norm(mean - target_mean) + torch.linalg.vector_norm(variance - target_variance)
        total = total + (first_factor if index == 0 else 1.0) * distance
    return total


class JointAlignment:
    """`bn_alignment` to a fixed target, up to rounding, for GPUs: a dozen kernels in all instead of per layer."""

    def __init__(self, target: Statistics, first_factor: float = 1.0) -> None:
        flat = [part for pair in target for part in pair]
        self._sizes = [len(part) for part in flat]
        self._target = torch.cat(flat)
        weights = torch.ones(len(flat), dtype=self._target.dtype, device=self._target.device)
        weights[:2] = first_factor
        self._weights = weights
        self._part = torch.arange(len(flat)).repeat_interleave(torch.tensor(self._sizes)).to(self._target.device)

    def __call__(self, batch: Statistics) -> Tensor:
        """Return the loss of a batch's statistics, a scalar."""
        flat = [part for pair in batch for part in pair]
        loss: Tensor = _JointAlignment.apply(self._target, self._weights, self._part, self._sizes, *flat)
        return loss


class _JointAlignment(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, target: Tensor, weights: Tensor, part: Tensor, sizes: list[int], *statistics: Tensor
    ) -> Tensor:
        difference = torch.cat(statistics) - target
        norms = torch.stack(torch._foreach_norm(torch.split(difference, sizes)))
        ctx.sizes = sizes
        ctx.save_for_backward(difference, norms, weights, part)
        return (weights * norms).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """∂‖d‖/∂d = d / ‖d‖, zero at zero."""
        difference, norms, weights, part = ctx.saved_tensors
        factors = torch.where(norms > 0, weights / norms, 0.0) * grad
        return None, None, None, None, *torch.split(difference * factors[part], ctx.sizes)
