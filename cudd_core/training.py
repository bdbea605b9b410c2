"""The only supervised loop: teacher, students and evaluation all use it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from cudd_core.averaging import Average
from cudd_core.checkpoints import read_checkpoint, with_prefix, write_checkpoint
from cudd_core.compute import optimizers
from cudd_core.compute.graphs import Recorded
from cudd_core.compute.ranks import check_agreement, sum_gradients
from cudd_core.compute.runtime import Runtime
from cudd_core.configuration import Configuration, Switch
from cudd_core.errors import ConfigError
from cudd_core.models.stochastic import begin_epoch, divide_stochastic_layers, is_stochastic
from cudd_core.models.synced_batchnorm import sync_batchnorm
from cudd_core.pace import Pace
from cudd_core.progress import CONTINUED, Progress, silent


class TrainingConfig(Configuration):
    """Optimiser, its cosine schedule (per step, no warm-up), length of training, and which weights are kept."""

    optimizer: Literal["sgd", "adamw"] = Field("adamw", description="sgd uses momentum 0.9.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Peak learning rate.")
    weight_decay: float = Field(0.01, ge=0, le=1, description="Weight decay (decoupled for adamw).")
    epochs: int = Field(1000, ge=1, description="Passes over the training images.")
    batch_size: int = Field(16, ge=2, description="Images per step; BatchNorm needs at least two.")
    cosine_stretch: Annotated[float, Switch()] = Field(
        1.0,
        ge=1,
        le=100,
        description="ζ: the cosine reaches 0 after ζ times the steps; above 1 it never gets there (EDC).",
    )
    ema_decay: Annotated[float, Switch()] = Field(
        0.0, ge=0, lt=1, description="Decay per step of the averaged weights that are kept; 0: keep the last weights."
    )


class Batches(Protocol):
    """What `fit` trains on. An epoch depends on its number alone, so training can resume at any epoch."""

    steps_per_epoch: int

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield (inputs [n, C, H, W], *targets) of one epoch, on the device: targets [n, …] or scalars []."""
        ...


@dataclass(frozen=True)
class Checkpointing:
    """Where `fit` saves what it needs to resume: after every `every` epochs, if a checkpoint is due (`Pace`).

    The file is replaced atomically.
    """

    folder: Path
    every: int

    @property
    def file(self) -> Path:
        """The one checkpoint file."""
        return self.folder / "checkpoint.safetensors"


def cosine(peak: float, step: int, steps: int, stretch: float = 1.0) -> float:
    """Return peak · ½ (1 + cos(π · step / (stretch · steps))), which ends at peak · cos²(π / (2 · stretch))."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / (stretch * steps)))


def make_optimizer(network: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return the configured optimiser over all parameters."""
    parameters, rate, decay = network.parameters(), config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return optimizers.make(torch.optim.SGD, parameters, rate, momentum=0.9, weight_decay=decay)
    return optimizers.make(torch.optim.AdamW, parameters, rate, weight_decay=decay)


def fit(
    network: nn.Module,
    batches: Batches,
    loss: Callable[..., Tensor],
    config: TrainingConfig,
    runtime: Runtime,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> list[dict[str, float]]:
    """Train `network` in place and return one row {epoch, loss, learning_rate} per epoch.

    At the end it holds its last weights or, with `config.ema_decay`, their average over all steps; reported losses are
    those of the weights being trained, not of the average. A run that was killed and resumes from its checkpoint gives
    the same bytes as an uninterrupted one: batches depend only on the epoch's number, and the checkpoint holds the
    network, its average, the optimiser and the history.

    `loss(logits, *targets)` is a mean over the images of a batch. If several processes train (`runtime.ranks`), each
    calls this with the same arguments and ends with the network that a single process would have, up to the order of
    sums. The first one writes the checkpoint, from which any number of processes can resume.

    Raises:
        ConfigError: the loss is no longer finite.
        ModelError: the network has a kind of BatchNorm that several processes cannot share.
    """
    ranks = runtime.ranks
    network = runtime.network(network).train()
    if ranks.size > 1:
        sync_batchnorm(network, ranks)
        divide_stochastic_layers(network, ranks)
    optimizer = make_optimizer(network, config)
    average = Average(network, config.ema_decay) if config.ema_decay else None
    history = _resume(network, average, optimizer, checkpointing)
    if history:
        progress(len(history), config.epochs, {CONTINUED: len(history)})
    total, pace = torch.zeros((), device=runtime.device), Pace()

    def make_step(inputs: Tensor, *targets: Tensor) -> tuple[Tensor, ...]:
        part = ranks.part
        with runtime.autocast():
            logits = network(part.of(inputs))
        value = loss(logits.float(), *map(part.of, targets)) * part.weight
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        sum_gradients(network, ranks)
        optimizer.step()
        if average is not None:
            average.update()
        total.add_(value.detach())
        return ()

    step = Recorded(make_step, runtime.device, runtime.config.graphs and ranks.size == 1 and not is_stochastic(network))
    steps = config.epochs * batches.steps_per_epoch
    waiting: list[tuple[int, Tensor, float]] = []
    for epoch in range(len(history), config.epochs):
        total.zero_()
        begin_epoch(network, epoch)
        for number, batch in enumerate(batches.epoch(epoch)):
            done = epoch * batches.steps_per_epoch + number
            learning_rate = cosine(config.learning_rate, done, steps, config.cosine_stretch)
            optimizers.set_learning_rates(optimizer, [learning_rate] * len(optimizer.param_groups))
            ranks.take(len(batch[0]))
            step(*batch)
            if number + 1 < batches.steps_per_epoch:
                progress(epoch + (number + 1) / batches.steps_per_epoch, config.epochs, {})
        check_agreement(network, ranks)
        waiting.append((epoch, ranks.sum(total.clone()), learning_rate))
        last = epoch + 1 == config.epochs
        due = checkpointing is not None and ranks.first and (epoch + 1) % checkpointing.every == 0 and not last
        save = due and pace.due()
        # Reading a loss waits for the GPU, which would then idle while the next batches are made.
        if save or last or runtime.device.type == "cpu" or len(waiting) >= _READ_TOGETHER:
            rows = [_row(epoch, value, batches.steps_per_epoch, rate) for epoch, value, rate in waiting]
            waiting.clear()
            _check_finite(rows, config)
            history += rows
        if checkpointing and save:
            with pace.saving():
                _save(network, average, optimizer, history, checkpointing)
        progress(epoch + 1, config.epochs, {} if waiting else history[-1])
    if average is not None:
        network.load_state_dict(average.module.state_dict())
    network.eval()
    return history


_READ_TOGETHER = 20
"""Number of epochs whose losses are read back together on a GPU."""


def _row(epoch: int, total: Tensor, steps: int, learning_rate: float) -> dict[str, float]:
    return {"epoch": float(epoch + 1), "loss": float(total) / steps, "learning_rate": learning_rate}


def _check_finite(rows: list[dict[str, float]], config: TrainingConfig) -> None:
    """Raise ConfigError if a loss is not finite: everything made with such a network would silently be noise."""
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise ConfigError(
                f"Training diverged in epoch {row['epoch']:.0f} of {config.epochs}: the loss is {row['loss']}. Lower "
                f"learning_rate of this training, whose peak is {config.learning_rate:g}."
            )


def _save(
    network: nn.Module,
    average: Average | None,
    optimizer: torch.optim.Optimizer,
    history: list[dict[str, float]],
    where: Checkpointing,
) -> None:
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.module.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizers.state_tensors(optimizer).items()}
    rows = [[row["epoch"], row["loss"], row["learning_rate"]] for row in history]
    tensors["history"] = torch.tensor(rows, dtype=torch.float64)
    write_checkpoint(tensors, where.file)


def _resume(
    network: nn.Module,
    average: Average | None,
    optimizer: torch.optim.Optimizer,
    where: Checkpointing | None,
) -> list[dict[str, float]]:
    tensors = read_checkpoint(where.file) if where is not None else None
    if tensors is None:
        return []
    network.load_state_dict(with_prefix(tensors, "network."))
    if average is not None:
        average.module.load_state_dict(with_prefix(tensors, "average."))
        average.begun = True
    optimizers.restore_state(optimizer, with_prefix(tensors, "optimizer."))
    return [
        {"epoch": epoch, "loss": value, "learning_rate": learning_rate}
        for epoch, value, learning_rate in tensors["history"].tolist()
    ]
