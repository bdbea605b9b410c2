"""Train the fresh networks that a set is judged by; they are kept whole, so later measurements need no training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from cudd_core.compute.runtime import Runtime
from cudd_core.configuration import Switch
from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LabelSource, LossConfig, train_on_set
from cudd_core.models.registry import build
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, NetworkSpec, SyntheticSet
from cudd_core.seeding import derive
from cudd_core.training import Checkpointing, TrainingConfig

VERSION = 1


class EvaluationConfig(LossConfig):
    """Evaluation as in Table XIII, with the same networks, labels, epochs and steps for every set that is compared."""

    archs: tuple[str, ...] = Field((), description="Architectures to train; empty: the teacher's.")
    seeds: int = Field(3, ge=1, le=100, description="Networks trained per architecture.")
    labels: Annotated[Literal["soft", "hard"], Switch()] = Field(
        "soft", description="Train on the teacher's logits, or on the classes alone; the batches are the same."
    )
    training: TrainingConfig = TrainingConfig()
    checkpoint_every: int = Field(
        20, ge=1, description="Epochs between checkpoints; more if they would take over 2 % of the time."
    )

    def target_identity(self) -> dict[str, Any]:
        """Return the part of a stage key that covers labels and loss; with hard labels there is only one loss."""
        return self.loss_identity() if self.labels == "soft" else {"labels": self.labels}


def train_network(
    synthetic: SyntheticSet,
    labels: LabelSource,
    teacher: NetworkSpec,
    arch: str,
    number: int,
    config: EvaluationConfig,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpoints: Path | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Return the `number`-th fresh `arch`, trained on the set, after its last epoch.

    Networks differ in their initial weights; they share the labels, and with them the order and augmentation of
    the images. `labels` are not read if `config.labels` is "hard".
    """
    spec = replace(teacher, arch=arch)
    network = build(spec, derive(seed, "evaluate", number))
    return train_on_set(
        network,
        spec,
        synthetic,
        None if config.labels == "hard" else labels,
        config.training,
        config,
        replay,
        seed,
        runtime,
        checkpointing=Checkpointing(checkpoints, config.checkpoint_every) if checkpoints else None,
        progress=progress,
    )
