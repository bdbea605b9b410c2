"""Train φ_j on S_{1:j} with the teacher's soft labels (Eq. 8)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pydantic import Field

from cudd_core.compute.runtime import Runtime
from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LabelSource, LossConfig, train_on_set
from cudd_core.models.registry import build, load_state
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, NetworkSpec, SyntheticSet
from cudd_core.seeding import derive
from cudd_core.training import Checkpointing, TrainingConfig

VERSION = 1


class StudentConfig(LossConfig):
    """Students of the curricula. `training` is for curriculum 1; by default later ones start from φ_{j-1} (Fig. 8)."""

    arch: str = Field("", description="Architecture; empty: the teacher's.")
    training: TrainingConfig = TrainingConfig()
    warm_start: bool = Field(True, description="Start φ_j from φ_{j-1}; off: train from scratch for all epochs.")
    warm_epoch_factor: float = Field(0.5, gt=0, le=1, description="With a warm start: share of the epochs for j > 1.")
    warm_learning_rate: float = Field(5e-4, gt=0, description="With a warm start: learning rate for j > 1.")
    checkpoint_every: int = Field(
        20, ge=1, description="Epochs between checkpoints; more if they would take over 2 % of the time."
    )
    train_last: bool = Field(False, description="Also train the last curriculum's student, which no stage needs.")

    def training_of(self, curriculum: int) -> TrainingConfig:
        """Return the training of curriculum `curriculum` (from 1), with its own length and learning rate."""
        if curriculum == 1 or not self.warm_start:
            return self.training
        epochs = max(1, round(self.training.epochs * self.warm_epoch_factor))
        return self.training.model_copy(update={"epochs": epochs, "learning_rate": self.warm_learning_rate})


def train_student(
    synthetic: SyntheticSet,
    labels: LabelSource,
    teacher: NetworkSpec,
    previous: NetworkRecord | None,
    curriculum: int,
    config: StudentConfig,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpoints: Path | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Return φ_j: from scratch for j = 1 or without warm start, otherwise started from `previous` (φ_{j-1})."""
    spec = replace(teacher, arch=config.arch or teacher.arch)
    network = build(spec, derive(seed, "student", curriculum))
    if previous is not None and config.warm_start:
        load_state(network, previous.state, spec)
    return train_on_set(
        network,
        spec,
        synthetic,
        labels,
        config.training_of(curriculum),
        config,
        replay,
        seed,
        runtime,
        checkpointing=Checkpointing(checkpoints, config.checkpoint_every) if checkpoints else None,
        progress=progress,
    )
