"""Experts: networks trained on T by plain SGD, with a snapshot after every epoch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cudd_core.checkpoints import read_checkpoint, write_checkpoint
from cudd_core.compute.runtime import Runtime
from cudd_core.data.batches import AugmentedBatches
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.data.statistics import spec_for
from cudd_core.errors import ConfigError
from cudd_core.models.registry import build
from cudd_core.models.stateless import leaves, sgd_step, stateless
from cudd_core.objectives.configuration import MttConfig
from cudd_core.progress import CONTINUED, Progress, silent
from cudd_core.records import Trajectory
from cudd_core.seeding import derive

VERSION = 2  # 1 left images unmirrored where `crop` was none, although `flip` is in the key

_LOSS = "loss"
"""Key of an epoch's mean loss in its checkpoint. No parameter has this name, since theirs contain a dot."""


def train_expert(
    split: ImageSplit,
    config: MttConfig,
    number: int,
    seed: int,
    runtime: Runtime,
    *,
    checkpoints: Path | None = None,
    progress: Progress = silent,
) -> Trajectory:
    """Train the `number`-th `config.arch` on all of T with hard labels and return its trajectory.

    Plain SGD has no state, so a snapshot is all that is needed to resume: each epoch leaves one in `checkpoints`.

    Raises:
        ConfigError: the loss is no longer finite.
        ModelError: trajectories cannot be followed through this architecture.
    """
    spec = spec_for(config.arch, split, seed)
    network = stateless(build(spec, derive(seed, "expert", number, "network")), config.arch).to(runtime.device)
    batches = AugmentedBatches(
        split,
        Normalizer.of(spec, runtime.device),
        config.expert_batch_size,
        config.crop,
        config.flip,
        seed,
        ("expert", number),
        runtime,
    )
    way = [{name: value.detach().cpu() for name, value in network.named_parameters()}, *_saved(checkpoints)]
    parameters = {name: way[-1][name].to(runtime.device) for name, _ in network.named_parameters()}
    begun = len(way) - 1
    if 0 < begun < config.expert_epochs:
        progress(begun, config.expert_epochs, {CONTINUED: begun})
    for epoch in range(begun, config.expert_epochs):
        total = torch.zeros((), device=runtime.device)
        for step, (images, labels) in enumerate(batches.epoch(epoch), start=1):
            parameters, loss = sgd_step(network, leaves(parameters), images, labels, config.expert_learning_rate)
            total += loss
            if step < batches.steps_per_epoch:
                progress(epoch + step / batches.steps_per_epoch, config.expert_epochs, {})
        mean_loss = (total / batches.steps_per_epoch).cpu()
        if not bool(mean_loss.isfinite()):
            raise ConfigError(
                f"Expert {number} diverged in epoch {epoch + 1} of {config.expert_epochs}: the loss is "
                f"{float(mean_loss)}. Lower synthesis.mtt.expert_learning_rate, which is "
                f"{config.expert_learning_rate:g}."
            )
        way.append({**{name: value.cpu() for name, value in parameters.items()}, _LOSS: mean_loss})
        if checkpoints:
            write_checkpoint(way[-1], _file(checkpoints, epoch + 1))
        progress(epoch + 1, config.expert_epochs, {"epoch": epoch + 1.0, "loss": float(mean_loss)})
    return Trajectory(
        spec,
        {name: torch.stack([snapshot[name] for snapshot in way]) for name in parameters},
        tuple({"epoch": float(epoch), "loss": float(row[_LOSS])} for epoch, row in enumerate(way[1:], start=1)),
    )


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.safetensors"


def _saved(folder: Path | None) -> list[dict[str, Tensor]]:
    """Return the snapshots left by a run that was killed, from the first epoch on."""
    found: list[dict[str, Tensor]] = []
    while folder and (snapshot := read_checkpoint(_file(folder, len(found) + 1))) is not None:
        found.append(snapshot)
    return found
