"""Optimisers whose steps fit into a CUDA graph: on a GPU, learning rates are tensors there and kernels are fused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cudd_core.compute.gpu.kernels import gpu_kernels


def make(
    kind: type[torch.optim.Optimizer],
    parameters: Iterable[Tensor],
    learning_rate: float,
    **settings: Any,
) -> torch.optim.Optimizer:
    """Return an optimiser over tensors of one device; if that is a GPU, one that CUDA graphs can record.

    On a CPU each operation handles all tensors in one call. This gives the bits of torch's default, takes less time for
    networks of small tensors, and means fewer calls between which another thread can take Python's lock. Fused kernels
    would give other bits.
    """
    tensors = list(parameters)
    device = tensors[0].device
    if device.type != "cuda":
        return kind(tensors, lr=learning_rate, foreach=True, **settings)  # type: ignore[call-arg]
    rate = torch.tensor(learning_rate, device=device)
    if kind is not torch.optim.SGD:
        settings["capturable"] = True
    if kind is torch.optim.Adam and len(tensors) == 1:
        # A fused kernel gives each multiprocessor 65,536 values, so one tensor would leave most of them idle.
        kernels = gpu_kernels("adam")
        if kernels is not None:
            return kernels.OneTensorAdam(tensors[0], lr=rate, **settings)  # type: ignore[no-any-return]
        return kind(tensors, lr=rate, foreach=False, **settings)
    return kind(tensors, lr=rate, fused=True, **settings)  # type: ignore[call-arg]


def learning_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return the learning rate of every group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def set_learning_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Set the learning rate of every group, in place where it is a tensor."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return all tensors of the optimiser's state, contiguous, as "index.name" → tensor."""
    return {
        f"{index}.{name}": value.contiguous()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def restore_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `state_tensors` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    # A fused kernel goes through memory in order, so state must have the memory layout of its parameter.
    for parameter, held in optimizer.state.items():
        for name, value in held.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                held[name] = torch.empty_like(parameter).copy_(value)
