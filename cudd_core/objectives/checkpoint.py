"""A descent on disk: everything it needs to resume and give the same bytes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cudd_core.checkpoints import read_checkpoint, with_prefix, write_checkpoint
from cudd_core.compute import optimizers
from cudd_core.objectives.interface import Descent

Logged = list[tuple[int, dict[str, Tensor]]]
"""Each logged iteration with its scalars by name, the same names every time."""


def save_descent(descent: Descent, logged: Logged, file: Path) -> None:
    """Write the learned tensors, the optimiser's state and the log, whose last entry is the last iteration done."""
    tensors = {"logged.iteration": torch.tensor([iteration for iteration, _ in logged])}
    for name in logged[-1][1]:
        tensors[f"logged.{name}"] = torch.stack([values[name].cpu() for _, values in logged])
    for number, learned in enumerate(_learned(descent.optimizer)):
        tensors[f"learned.{number}"] = learned.detach()
    tensors |= {f"optimizer.{name}": value for name, value in optimizers.state_tensors(descent.optimizer).items()}
    write_checkpoint(tensors, file)


def load_descent(descent: Descent, logged: Logged, file: Path) -> int:
    """Restore the saved state into a fresh descent, fill `logged`, and return the next iteration: 0 without a file."""
    saved = read_checkpoint(file)
    if saved is None:
        return 0
    with torch.no_grad():
        for number, learned in enumerate(_learned(descent.optimizer)):
            learned.copy_(saved[f"learned.{number}"])
    optimizers.restore_state(descent.optimizer, with_prefix(saved, "optimizer."))
    values = with_prefix(saved, "logged.")
    iterations = [int(iteration) for iteration in values.pop("iteration")]
    logged += [(iteration, {name: rows[n] for name, rows in values.items()}) for n, iteration in enumerate(iterations)]
    return iterations[-1] + 1


def _learned(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]
