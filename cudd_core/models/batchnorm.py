"""BatchNorm in networks that are only looked through: statistics of its inputs, and a cheap gradient."""

from __future__ import annotations

import functools
import logging
from types import ModuleType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cudd_core.errors import ModelError

_log = logging.getLogger("cudd.kernels")


def batchnorm_layers(network: nn.Module, name: str, needed_by: str) -> list[_BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, in the order of `network.modules()`.

    Raises:
        ModelError: there is none; `name` is the network's, `needed_by` says what needs one and what to set otherwise.
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise ModelError(f"{name} has no BatchNorm layer with running statistics, which {needed_by}")
    return layers


def use_batch_statistics(network: nn.Module, name: str) -> None:
    """Let BatchNorm normalise by each batch's own statistics, as in training, and leave the running ones alone.

    All other layers stay as they are, so dropout stays off in a network that is in eval mode.

    Raises:
        ModelError: a network without BatchNorm.
    """
    for layer in batchnorm_layers(network, name, "relabel.batchnorm=batch needs. Set relabel.batchnorm=eval."):
        layer.train()
        layer.track_running_stats = False


@torch.no_grad()
def remember_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor, count: float) -> None:
    """Let the running statistics of `layer` follow a batch's mean [c] and biased variance [c] over `count` values."""
    assert layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    factor = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
    unbiased = variance * (count / (count - 1))
    layer.running_mean.mul_(1 - factor).add_(mean.to(layer.running_mean.dtype), alpha=factor)
    layer.running_var.mul_(1 - factor).add_(unbiased.to(layer.running_var.dtype), alpha=factor)


class BatchNormInputs:
    """While open, remembers mean [c] and biased variance [c] of each BatchNorm's input, float32, differentiable.

    `running` holds the layers' own running (mean, variance), in the order in which `collect` returns a batch's.

    Raises:
        ModelError: a network without BatchNorm, which L_bn cannot use.
    """

    def __init__(self, network: nn.Module, name: str) -> None:
        self.layers = batchnorm_layers(
            network,
            name,
            "the statistics loss L_bn needs. Choose another teacher.arch, or set synthesis.weight_bn=0.",
        )
        self._current: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self._handles = [layer.register_forward_pre_hook(self._remember) for layer in self.layers]
        for layer in self.layers:
            if isinstance(layer, FrozenBatchNorm2d):
                layer.watcher = self._current

    @property
    def running(self) -> list[tuple[Tensor, Tensor]]:
        """The layers' running (mean, variance)."""
        return [(layer.running_mean, layer.running_var) for layer in self.layers]  # type: ignore[misc]

    def _remember(self, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
        if isinstance(layer, FrozenBatchNorm2d) and layer.fused(inputs[0]):
            return None
        x, mean, variance = batch_statistics(inputs[0])
        self._current[layer] = (mean, variance)
        return x

    def collect(self) -> list[tuple[Tensor, Tensor]]:
        """Return the statistics of the last forward pass, layer by layer, and forget them."""
        collected = [self._current[layer] for layer in self.layers]
        self._current.clear()
        return collected

    def __enter__(self) -> BatchNormInputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for layer in self.layers:
            if isinstance(layer, FrozenBatchNorm2d):
                layer.watcher = None


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x, mean [c], biased variance [c]) of a batch [n, c, …]; statistics are float32 at least.

    Go on with the x that is returned: its gradient and those of the statistics then reach the batch in two passes over
    memory, where `torch.var_mean` needs six, and 14 times as long forward on a channels-last batch on a CPU. The
    kernel is the one that BatchNorm trains with, so the statistics are those that its running ones are made of.
    """
    result: tuple[Tensor, Tensor, Tensor] = _BatchStatistics.apply(x)
    return result


class _BatchStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # On a CPU the kernel would return the statistics of a half-precision batch in half precision.
        exact = x if x.is_cuda else x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance = torch.batch_norm_update_stats(exact, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return x, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        """∂mean/∂x = 1/N and ∂variance/∂x = 2 (x − mean)/N, so both together are slope · x + offset."""
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = grad_variance * (2 / count)
        offset = grad_mean / count - slope * mean
        shape = (1, -1, *[1] * (x.dim() - 2))
        return torch.addcmul(offset.view(shape), x, slope.view(shape)).add_(grad).to(x.dtype)


@functools.cache
def _kernels() -> ModuleType | None:
    """Return `cudd_core.compute.gpu_batchnorm`, None where they cannot be built."""
    try:
        from cudd_core.compute import gpu_batchnorm

        x, one = torch.zeros(1, 1, 1, 1, device="cuda"), torch.ones(1, device="cuda")
        gpu_batchnorm.normalise(x, one, one, one, one, 1.0)
        gpu_batchnorm.gradient(x, one, one, 1.0, (x, one, one, one))
    except Exception as error:
        # Triton's ways to fail are many: it is not there, or no C compiler is, or its cache cannot be written.
        _log.warning("synthesis takes a slower way through BatchNorm: its GPU kernels cannot be built (%s)", error)
        return None
    return gpu_batchnorm


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """A `BatchNorm2d` whose backward pass, in eval mode, is the product that it should be.

    On a CPU torch's own sums gradients of weights there that nobody asked for, which takes four times as long; on a GPU
    it changes the layout of the batch, which the next layer then has to change back. Values are torch's, bit for bit on
    a CPU, gradients to rounding.
    """

    watcher: dict[nn.Module, tuple[Tensor, Tensor]] | None = None
    """Where mean and variance of a batch go, on a GPU: one pass over memory gives them and the output."""

    def fused(self, x: Tensor) -> bool:
        """Return whether kernels take the batch."""
        fits = x.is_cuda and x.numel() < 2**31 and x.is_contiguous(memory_format=torch.channels_last)
        return fits and not self.training and not self.weight.requires_grad and _kernels() is not None

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised batch [n, c, H, W]."""
        assert self.weight is not None
        fused = self.fused(input)
        if self.training or self.weight.requires_grad or (input.is_cuda and not fused):
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None
        values = (input, self.running_mean, self.running_var, self.weight, self.bias, self.eps)
        result: Tensor
        if fused and self.watcher is not None:
            result, mean, variance = _WatchedBatchNorm.apply(*values)
            self.watcher[self] = (mean, variance)
        else:
            result = _FrozenBatchNorm.apply(*values)
        return result


def freeze_batchnorm(network: nn.Module) -> nn.Module:
    """Turn every `BatchNorm2d` of a frozen network into a `FrozenBatchNorm2d`, in place; parameters stay."""
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
            kernels = _kernels()
            assert kernels is not None
            return kernels.gradient(grad, variance, weight, ctx.eps), None, None, None, None, None
        scale = weight * (variance + ctx.eps).rsqrt()
        return (grad * scale.view(1, -1, 1, 1)).to(grad.dtype), None, None, None, None, None


class _WatchedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        kernels = _kernels()
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
        kernels = _kernels()
        assert kernels is not None
        statistics = (x, mean, grad_mean, grad_variance)
        return kernels.gradient(grad, variance, weight, ctx.eps, statistics), None, None, None, None, None
