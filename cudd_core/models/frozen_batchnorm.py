"""BatchNorm of frozen networks, computed together with what stands beside it where one pass can do both."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from cudd_core.compute.cpu import batchnorm as cpu_batchnorm
from cudd_core.compute.cpu.kernels import Fusible
from cudd_core.compute.frozen_layer import After, Layer
from cudd_core.compute.gpu.kernels import gpu_kernels
from cudd_core.models.relu_pool import ReluPool


class FrozenBatchNorm2d(nn.BatchNorm2d, Fusible):
    """A `BatchNorm2d` whose backward pass, in eval mode, is just the product that it should be.

    On a CPU, torch's own backward pass also sums gradients of the weights that nobody asked for, which takes four times
    as long; on a GPU it changes the layout of the batch, which the next layer then has to change back. Values on a CPU
    are torch's, bit for bit; gradients, and values on a GPU, are torch's up to rounding. If `fused`, values on a CPU
    are also torch's only up to rounding, and what follows the layer costs nothing extra, as it does on a GPU.
    """

    watchers: tuple[dict[nn.Module, tuple[Tensor, Tensor]], ...] = ()
    """They receive the mean and variance of each batch for which `watches` is true, which come from the same pass over
memory as the output."""

    def watches(self, x: Tensor) -> bool:
        """Return whether the batch's statistics are computed together with the output."""
        return self.in_one_pass(x) or self.on_gpu(x)

    def in_one_pass(self, x: Tensor) -> bool:
        """Return whether, on a CPU, the layer and what follows it are computed in one pass."""
        return self.fused and self.is_frozen and cpu_batchnorm.fits(x)

    def on_gpu(self, x: Tensor) -> bool:
        """Return whether, on a GPU, the layer and what stands beside it are computed in one pass."""
        shaped = x.dim() == 4 and 0 < x.numel() < 2**31 and x.is_contiguous(memory_format=torch.channels_last)
        return shaped and x.dtype in _GPU_TYPES and self.is_frozen and _has_kernels(x)

    @property
    def is_frozen(self) -> bool:
        """Whether it is in eval mode and its parameters are constant."""
        return not self.training and not self.weight.requires_grad

    def forward(
        self,
        input: Tensor,
        after: After = After.NOTHING,
        beside: Tensor | None = None,
        convolution_bias: Tensor | None = None,
    ) -> Tensor:
        """Return the normalised batch [n, c, H, W].

        In one pass, with `after` and `beside` applied, and on a GPU with a `convolution_bias` [c] added to it before.
        """
        if self.on_gpu(input):
            kernels: Any = gpu_kernels("batchnorm")
            return self._by(kernels, input, after, beside, convolution_bias)
        assert convolution_bias is None
        if self.in_one_pass(input):
            return self._by(cpu_batchnorm, input, after, beside)
        assert after is After.NOTHING
        if not self.is_frozen or input.is_cuda:
            return super().forward(input)
        result: Tensor = _FrozenBatchNorm.apply(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.eps
        )
        return result

    def _by(self, kernels: Any, x: Tensor, *following: Any) -> Tensor:
        assert self.running_mean is not None and self.running_var is not None
        layer = Layer((self.running_mean, self.running_var), self.weight, self.bias, self.eps)
        result: Tensor
        if not self.watchers:
            result = kernels.normalise(x, layer, *following)
            return result
        result, *statistics = kernels.normalise_and_look(x, layer, *following)
        for watcher in self.watchers:
            watcher[self] = (statistics[0], statistics[1])
        return result


def followed(
    norm: nn.Module, convolution: nn.Module, inputs: Tensor, activation: nn.Module, beside: Tensor | None = None
) -> Tensor:
    """Return activation(norm(convolution(inputs)) + beside) of [n, c, H, W].

    Where possible, all but the product of the convolution is done in one pass over memory.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return _separately(norm(convolution(inputs)), activation, beside)
    features, bias = _convolved(norm, convolution, inputs)
    after = _AFTER[type(activation), beside is not None]
    if norm.in_one_pass(features) or (norm.on_gpu(features) and _fit(features, after, beside)):
        return norm(features, after, beside, bias)  # type: ignore[no-any-return]
    return _separately(norm(features, After.NOTHING, None, bias), activation, beside)


_AFTER = {(nn.ReLU, False): After.RELU, (ReluPool, False): After.POOL, (nn.ReLU, True): After.JOIN}
_GPU_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def _separately(normalised: Tensor, activation: nn.Module, beside: Tensor | None) -> Tensor:
    if beside is not None:
        normalised += beside
    return activation(normalised)  # type: ignore[no-any-return]


def _has_kernels(x: Tensor) -> bool:
    return x.is_cuda and gpu_kernels("batchnorm") is not None


def _convolved(norm: FrozenBatchNorm2d, convolution: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the convolution's output and, if that is left to `norm`, the bias that is still to be added to it.

    On a GPU, convolutions take a pass over memory of its own for the bias.
    """
    if not (norm.is_frozen and _has_kernels(inputs) and _is_plain(convolution)):
        return convolution(inputs), None
    assert isinstance(convolution, nn.Conv2d) and convolution.bias is not None
    geometry = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
    features = conv2d(inputs, convolution.weight, None, *geometry)  # type: ignore[arg-type]
    if norm.on_gpu(features):
        return features, convolution.bias
    return features + convolution.bias.to(features.dtype).view(-1, 1, 1), None


def _is_plain(convolution: nn.Module) -> bool:
    """Return whether it is torch's convolution, with a constant bias that can be left out without anyone noticing."""
    if type(convolution) is not nn.Conv2d or convolution.bias is None or convolution.padding_mode != "zeros":
        return False
    return not (convolution.bias.requires_grad or convolution._forward_pre_hooks or convolution._forward_hooks)


def _fit(features: Tensor, after: After, beside: Tensor | None) -> bool:
    """Return whether the GPU's kernels can do what follows: sides to pool are even, features to add are alike."""
    if after is After.POOL:
        return features.shape[2] % 2 == features.shape[3] % 2 == 0
    if beside is None:
        return True
    alike = (beside.shape, beside.dtype) == (features.shape, features.dtype)
    return alike and beside.is_contiguous(memory_format=torch.channels_last)


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
        scale = weight * (variance + ctx.eps).rsqrt()
        return (grad * scale.view(1, -1, 1, 1)).to(grad.dtype), None, None, None, None, None
