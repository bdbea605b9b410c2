"""The BatchNorm layers of a network, and the statistics of their inputs."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cudd_core.errors import ModelError
from cudd_core.models.frozen_batchnorm import FrozenBatchNorm2d


def batchnorm_layers(network: nn.Module, name: str, needed_by: str) -> list[_BatchNorm]:
    """Return the BatchNorm layers that keep running statistics, in the order of `network.modules()`.

    Raises:
        ModelError: there is none. For the message, `name` is the network's name, and `needed_by` says what needs such a
            layer and what to set instead.
    """
    layers = [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        raise ModelError(f"{name} has no BatchNorm layer with running statistics, which {needed_by}")
    return layers


def use_batch_statistics(network: nn.Module, name: str) -> None:
    """Make BatchNorm normalise by each batch's own statistics, as in training, without updating the running ones.

    All other layers stay as they are, so dropout stays off in a network in eval mode.

    Raises:
        ModelError: the network has no BatchNorm.
    """
    for layer in batchnorm_layers(network, name, "relabel.batchnorm=batch needs. Set relabel.batchnorm=eval."):
        layer.train()
        layer.track_running_stats = False


@torch.no_grad()
def remember_statistics(layer: _BatchNorm, mean: Tensor, variance: Tensor, count: float) -> None:
    """Update the running statistics of `layer` by a batch's mean [c] and biased variance [c] over `count` values."""
    assert layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    factor = layer.momentum if layer.momentum is not None else 1.0 / float(layer.num_batches_tracked)
    unbiased = variance * (count / (count - 1))
    layer.running_mean.mul_(1 - factor).add_(mean.to(layer.running_mean.dtype), alpha=factor)
    layer.running_var.mul_(1 - factor).add_(unbiased.to(layer.running_var.dtype), alpha=factor)


class BatchNormInputs:
    """While open, records the mean [c] and biased variance [c] of each BatchNorm's input, float32, differentiable.

    `running` holds the layers' own running (mean, variance), in the same order as `collect` returns those of a batch.

    Raises:
        ModelError: the network has no BatchNorm, so L_bn cannot use it.
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
                layer.watchers = (*layer.watchers, self._current)

    @property
    def running(self) -> list[tuple[Tensor, Tensor]]:
        """The layers' running (mean, variance)."""
        return [(layer.running_mean, layer.running_var) for layer in self.layers]  # type: ignore[misc]

    def _remember(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if isinstance(layer, FrozenBatchNorm2d) and layer.watches(inputs[0]):
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
                layer.watchers = tuple(each for each in layer.watchers if each is not self._current)


def exact(x: Tensor) -> Tensor:
    """Return x in a type that BatchNorm's kernels sum in float32 or better; on a CPU they would keep half precision."""
    return x if x.is_cuda else x.to(torch.promote_types(x.dtype, torch.float32))


def batch_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (x, mean [c], biased variance [c]) of a batch [n, c, …]; the statistics are at least float32.

    Continue with the returned x: its gradient and those of the statistics then reach the batch in two passes over
    memory. `torch.var_mean` needs six, and its forward pass takes 14 times as long for a channels-last batch on a CPU.
    The kernel is the one that BatchNorm trains with, so these statistics are those that its running ones are made of.
    """
    result: tuple[Tensor, Tensor, Tensor] = _BatchStatistics.apply(x)
    return result


class _BatchStatistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = torch.batch_norm_update_stats(exact(x), None, None, 0.0)
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
