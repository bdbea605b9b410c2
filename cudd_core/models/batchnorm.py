"""Statistics of a batch at the input of every BatchNorm, taken during the forward pass that is made anyway."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cudd_core.errors import ModelError


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

    @property
    def running(self) -> list[tuple[Tensor, Tensor]]:
        """The layers' running (mean, variance)."""
        return [(layer.running_mean, layer.running_var) for layer in self.layers]  # type: ignore[misc]

    def _remember(self, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        x = inputs[0].float()
        variance, mean = torch.var_mean(x, dim=[0, *range(2, x.dim())], correction=0)
        self._current[layer] = (mean, variance)

    def collect(self) -> list[tuple[Tensor, Tensor]]:
        """Return the statistics of the last forward pass, layer by layer, and forget them."""
        collected = [self._current[layer] for layer in self.layers]
        self._current = {}
        return collected

    def __enter__(self) -> BatchNormInputs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
