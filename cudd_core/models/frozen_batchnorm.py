"""BatchNorm of frozen networks, computed together with what follows it where one pass can do both."""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cudd_core.compute import cpu_batchnorm
from cudd_core.compute.cpu_batchnorm import After, Layer
from cudd_core.compute.cpu_kernels import Fusible
from cudd_core.models.relu_pool import ReluPool

_log = logging.getLogger("cudd.kernels")


class FrozenBatchNorm2d(nn.BatchNorm2d, Fusible):
    """A `BatchNorm2d` whose backward pass, in eval mode, is just the product that it should be.

    On a CPU, torch's own backward pass also sums gradients of the weights that nobody asked for, which takes four times
    as long; on a GPU it changes the layout of the batch, which the next layer then has to change back. Values are
    torch's, bit for bit on a CPU; gradients are torch's up to rounding. If `fused`, values on a CPU are also torch's
    only up to rounding, and what follows the layer costs nothing extra.
    """

    watchers: tuple[dict[nn.Module, tuple[Tensor, Tensor]], ...] = ()
    """They receive the mean and variance of each batch for which `watches` is true, which come from the same pass over
memory as the output."""

    def watches(self, x: Tensor) -> bool:
        """Return whether the batch's statistics are computed together with the output."""
        return self.in_one_pass(x) or self._on_gpu(x)

    def in_one_pass(self, x: Tensor) -> bool:
        """Return whether, on a CPU, the layer and what follows it are computed in one pass."""
        return self.fused and self._is_frozen and cpu_batchnorm.fits(x)

    @property
    def _is_frozen(self) -> bool:
        return not self.training and not self.weight.requires_grad

    def _on_gpu(self, x: Tensor) -> bool:
        fits = x.is_cuda and x.numel() < 2**31 and x.is_contiguous(memory_format=torch.channels_last)
        return fits and self._is_frozen and _gpu_kernels() is not None

    def forward(self, input: Tensor, after: After = After.NOTHING, beside: Tensor | None = None) -> Tensor:
        """Return the normalised batch [n, c, H, W]; where it goes `in_one_pass`, with `after` and `beside` applied."""
        if self.in_one_pass(input):
            return self._in_one_pass(input, after, beside)
        assert after is After.NOTHING
        on_gpu = self._on_gpu(input)
        if not self._is_frozen or (input.is_cuda and not on_gpu):
            return super().forward(input)
        values = (input, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        result: Tensor
        if not (on_gpu and self.watchers):
            result = _FrozenBatchNorm.apply(*values)
            return result
        result, *statistics = _WatchedBatchNorm.apply(*values)
        self._tell(*statistics)
        return result

    def _in_one_pass(self, x: Tensor, after: After, beside: Tensor | None) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        layer = Layer((self.running_mean, self.running_var), self.weight, self.bias, self.eps)
        if not self.watchers:
            return cpu_batchnorm.normalise(x, layer, after, beside)
        result, *statistics = cpu_batchnorm.normalise_and_look(x, layer, after, beside)
        self._tell(*statistics)
        return result

    def _tell(self, mean: Tensor, variance: Tensor) -> None:
        for watcher in self.watchers:
            watcher[self] = (mean, variance)


def followed(norm: nn.Module, features: Tensor, activation: nn.Module, beside: Tensor | None = None) -> Tensor:
    """Return activation(norm(features) + beside) of [n, c, H, W], in one pass over memory where possible."""
    if isinstance(norm, FrozenBatchNorm2d) and norm.in_one_pass(features):
        return norm(features, _AFTER[type(activation), beside is not None], beside)  # type: ignore[no-any-return]
    result = norm(features)
    if beside is not None:
        result += beside
    return activation(result)  # type: ignore[no-any-return]


_AFTER = {(nn.ReLU, False): After.RELU, (ReluPool, False): After.POOL, (nn.ReLU, True): After.JOIN}


def freeze_batchnorm(network: nn.Module) -> nn.Module:
    """Turn every `BatchNorm2d` of a frozen network into a `FrozenBatchNorm2d`, in place; parameters are kept."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and module.affine and module.track_running_stats:
            module.__class__ = FrozenBatchNorm2d
    return network


class _FrozenBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(variance, weight)
        ctx.eps = eps
        return nn.functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        variance, weight = ctx.saved_tensors
        if grad.is_cuda:
            kernels = _gpu_kernels()
            assert kernels is not None
            return kernels.gradient(grad, variance, weight, ctx.eps), None, None, None, None, None
        scale = weight * (variance + ctx.eps).rsqrt()
        return (grad * scale.view(1, -1, 1, 1)).to(grad.dtype), None, None, None, None, None


class _WatchedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernels = _gpu_kernels()
        assert kernels is not None
        result, own_mean, own_variance = kernels.normalise(x, mean, variance, weight, bias, eps)
        ctx.save_for_backward(x, own_mean, variance, weight)
        ctx.eps = eps
        return result, own_mean, own_variance

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor
    ) -> tuple[Tensor, None, None, None, None, None]:
        x, mean, variance, weight = ctx.saved_tensors
        kernels = _gpu_kernels()
        assert kernels is not None
        statistics = (x, mean, grad_mean, grad_variance)
        return kernels.gradient(grad, variance, weight, ctx.eps, statistics), None, None, None, None, None


@functools.cache
def _gpu_kernels() -> ModuleType | None:
    """Return `cudd_core.compute.gpu_batchnorm`, or None if its kernels cannot be built."""
    try:
        from cudd_core.compute import gpu_batchnorm

        x, one = torch.zeros(1, 1, 1, 1, device="cuda"), torch.ones(1, device="cuda")
        gpu_batchnorm.normalise(x, one, one, one, one, 1.0)
        gpu_batchnorm.gradient(x, one, one, 1.0, (x, one, one, one))
    except Exception as error:
        # Triton can fail in many ways: it or a C compiler is missing, or its cache cannot be written.
        _log.warning("synthesis takes a slower way through BatchNorm: its GPU kernels cannot be built (%s)", error)
        return None
    return gpu_batchnorm
