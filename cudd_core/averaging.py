"""A running average of a network's weights over the course of training."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Average:
    """The exponential moving average of a network's state, w̄ ← d · w̄ + (1 − d) · w, starting from w̄ = w_1.

    BatchNorm's running statistics are averaged like weights, so they need not be estimated again; tables of indices,
    such as those of windowed attention, are left as they are. (torch's `AveragedModel` counts its steps on the host,
    where a CUDA graph would not update the count.)
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(network)
        self.begun = False
        towards = get_ema_multi_avg_fn(decay)
        pairs = [pair for pair in zip(_state(self.module), _state(network), strict=True) if not _is_table(pair[0])]
        kinds = [[pair for pair in pairs if pair[0].is_floating_point() is floats] for floats in (True, False)]
        self._groups = [tuple(map(list, zip(*kind, strict=True))) for kind in kinds if kind]
        self._towards: Callable[[list[Tensor], list[Tensor], int], None] = towards

    @torch.no_grad()
    def update(self) -> None:
        """Add the network's current state to the average."""
        for averaged, current in self._groups:
            if self.begun:
                self._towards(averaged, current, 0)
            else:
                for mine, its in zip(averaged, current, strict=True):
                    mine.copy_(its)
        self.begun = True


def _is_table(value: Tensor) -> bool:
    return value.dim() > 0 and not value.is_floating_point()


def _state(network: nn.Module) -> list[Tensor]:
    return [value.detach() for value in [*network.parameters(), *network.buffers()]]
