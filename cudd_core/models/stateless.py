"""Networks as functions of their parameters, and one step of plain SGD as a differentiable function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from cudd_core.errors import ModelError
from cudd_core.models.convnet import ConvNet

Parameters = Mapping[str, Tensor]
"""Parameters by name, as in `nn.Module.named_parameters`."""


def stateless(network: nn.Module, name: str) -> nn.Module:
    """Return `network` in training mode and without running statistics.

    Its output then depends only on parameters and batch: BatchNorm normalises by the batch at hand, InstanceNorm by
    each image. `name` is the architecture's, for the error message.

    Raises:
        ModelError: the network is not a ConvNet. Others keep state (dropout, running statistics of other kinds) or have
            layers whose second derivative is missing or not repeatable.
    """
    if not isinstance(network, ConvNet):
        raise ModelError(
            f"synthesis.mtt.arch = {name}: trajectories are followed through ConvNets alone, for example "
            "convnet3-in or convnet3."
        )
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return network.train()


def sgd_step(
    network: nn.Module,
    parameters: Parameters,
    images: Tensor,
    labels: Tensor,
    step_size: Tensor | float,
    *,
    differentiable: bool = False,
) -> tuple[dict[str, Tensor], Tensor]:
    """Return θ − α ∇_θ CE(f_θ(images), labels), by name, and the loss before the step.

    `parameters` must require gradients. With `differentiable` the result can be differentiated with respect to
    `parameters`, `images` and `step_size`; otherwise it is detached from all of them.
    """
    loss = cross_entropy(functional_call(network, dict(parameters), (images,)), labels)
    gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=differentiable)
    with torch.set_grad_enabled(differentiable):
        stepped = {
            name: value - step_size * gradient
            for (name, value), gradient in zip(parameters.items(), gradients, strict=True)
        }
    return stepped, loss.detach()


def leaves(parameters: Parameters) -> dict[str, Tensor]:
    """Return the same values as leaves that require gradients, sharing memory."""
    return {name: value.detach().requires_grad_() for name, value in parameters.items()}
