"""BatchNorm over a batch that several processes share: normalised, and differentiated, as if one process had all of it.

Part r of the batch has m_r values per channel, with mean μ_r and biased variance v_r, and weight w_r, with Σ w_r = 1
(`ranks.Part`):

    μ = Σ_r w_r μ_r        v = Σ_r w_r (v_r + (μ_r − μ)²)        y = γ x̂ + β        x̂ = (x − μ) / √(v + ε)

    ∂L/∂x = γ / √(v + ε) · (∂L/∂y − w_r/m_r (Σ ∂L/∂y + x̂ Σ ∂L/∂y x̂)),        sums over all images of all processes

The gradients of γ and β are those of this process's images; they are summed over processes together with all other
gradients. torch's own layer of this kind has no CPU kernels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from cudd_core.compute.ranks import Ranks
from cudd_core.errors import ModelError
from cudd_core.models.batchnorm import exact, remember_statistics

_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class SyncedBatchNorm(_BatchNorm):
    """In training, normalises by the batch of all `ranks`; in eval mode, does the same as torch's layer.

    Its input x [n, c, …] is this process's part of the images. Not constructed: `sync_batchnorm` turns layers into it.
    """

    ranks: Ranks

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised part [n, c, …]."""
        if not self.training:
            return super().forward(input)
        output, mean, variance = _Normalize.apply(input, self.weight, self.bias, self.eps, self.ranks)
        if self.track_running_stats:
            part = self.ranks.part
            count = input.numel() // input.shape[1]
            remember_statistics(self, mean, variance, count * part.whole / (part.stop - part.start))
        normalized: Tensor = output
        return normalized


class SyncedBatchNormAct(SyncedBatchNorm):
    """The same for timm's layer that combines BatchNorm, dropout and activation."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Return the activations [n, c, H, W]."""
        activations: Tensor = self.act(self.drop(super().forward(input)))
        return activations


def sync_batchnorm(network: nn.Module, ranks: Ranks) -> None:
    """Make every BatchNorm of `network` see the batch of all `ranks`, in place; parameters and state are kept.

    Raises:
        ModelError: the network has a kind of BatchNorm that is not known here.
    """
    for module in network.modules():
        if type(module) in _PLAIN or isinstance(module, SyncedBatchNorm):
            kind: type[SyncedBatchNorm] = SyncedBatchNorm
        elif type(module).__name__ == "BatchNormAct2d":  # timm's; importing it to compare would cost seconds
            kind = SyncedBatchNormAct
        elif isinstance(module, _BatchNorm):
            raise ModelError(
                f"The network has a BatchNorm of the kind {type(module).__name__}, which several processes cannot "
                "share. Set compute.data_parallel=1, or choose another architecture (`cudd archs`)."
            )
        else:
            continue
        if not isinstance(module, SyncedBatchNorm):
            module.__class__ = kind
        cast(SyncedBatchNorm, module).ranks = ranks


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor]:
        values = exact(x)
        own = torch.stack(torch.batch_norm_update_stats(values, None, None, 0.0))
        every = ranks.gather(own)
        weights = ranks.weights(every)[:, None]
        mean = (weights * every[:, 0]).sum(0)
        variance = (weights * (every[:, 1] + (every[:, 0] - mean).square())).sum(0)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt())
        ctx.ranks, ctx.each, ctx.eps = ranks, ranks.part.weight / (x.numel() // x.shape[1]), eps
        ctx.mark_non_differentiable(mean, variance)
        normalized = nn.functional.batch_norm(values, mean, variance, weight, bias, training=False, eps=eps)
        return normalized.to(x.dtype), mean, variance

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor, _mean: Tensor, _variance: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        values, grad = exact(x), exact(grad)
        # The kernel that ordinary BatchNorm uses, here for the sums Σ ∂L/∂y x̂ and Σ ∂L/∂y over this part.
        scale = weight if weight is not None else torch.ones_like(mean)
        _, against, total = torch.ops.aten.native_batch_norm_backward(
            grad, values, scale, None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        all_against, all_total = ctx.ranks.sum(torch.stack([against, total]))
        slope = -scale * inverse * inverse * ctx.each * all_against
        offset = -scale * inverse * ctx.each * all_total - slope * mean
        shape = (1, -1, *[1] * (x.dim() - 2))
        to_x = torch.addcmul(offset.view(shape), values, slope.view(shape))
        to_x.addcmul_(grad, (scale * inverse).view(shape))
        return (
            to_x.to(x.dtype),
            against if weight is not None else None,
            total if weight is not None else None,
            None,
            None,
        )
