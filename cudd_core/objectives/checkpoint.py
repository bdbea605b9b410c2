"""A descent on disk: all that it needs to go on with the same bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cudd_core.objectives.interface import Descent

Logged = list[tuple[int, dict[str, Tensor]]]
"""Iteration, and what was logged of it: scalars by name, the same names every time."""


def save_descent(descent: Descent, logged: Logged, file: Path) -> None:
    """Write what was learned, the optimiser's state and the log, whose last iteration is the last one made.

    The file is replaced atomically.
    """
    tensors = {"logged.iteration": torch.tensor([iteration for iteration, _ in logged])}
    for name in logged[-1][1]:
        tensors[f"logged.{name}"] = torch.stack([values[name].cpu() for _, values in logged])
    for number, learned in enumerate(_learned(descent.optimizer)):
        tensors[f"learned.{number}"] = learned.detach().contiguous()
    for number, state in descent.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value.contiguous()
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(file)


def load_descent(descent: Descent, logged: Logged, file: Path) -> int:
    """Put a fresh descent where the saved one was, fill `logged`, and return the next iteration."""
    tensors = load_file(file)
    state: dict[int, dict[str, Tensor]] = {}
    values: dict[str, Tensor] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "optimizer":
            number, _, name = rest.partition(".")
            state.setdefault(int(number), {})[name] = value
        elif kind == "logged":
            values[rest] = value
    with torch.no_grad():
        for index, learned in enumerate(_learned(descent.optimizer)):
            learned.copy_(tensors[f"learned.{index}"])
    groups = descent.optimizer.state_dict()["param_groups"]
    descent.optimizer.load_state_dict({"state": state, "param_groups": groups})
    iterations = [int(iteration) for iteration in values.pop("iteration")]
    logged += [(iteration, {name: rows[n] for name, rows in values.items()}) for n, iteration in enumerate(iterations)]
    return iterations[-1] + 1


def _learned(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]
