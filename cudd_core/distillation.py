"""Training a network on a synthetic set and its soft labels: students and evaluation both do exactly this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from cudd_core.compute.runtime import Runtime
from cudd_core.configuration import Configuration, Switch
from cudd_core.data.label_shards import StoredLabels
from cudd_core.data.replay import ClassReplay, LabelledReplay, Labels, Replay, ReplayConfig
from cudd_core.labelling import TeacherLabels, Teaching
from cudd_core.losses.logit_error import logit_error
from cudd_core.losses.mixed_label import mixed_label
from cudd_core.losses.soft_label import soft_label
from cudd_core.progress import Progress, silent
from cudd_core.records import LabelShard, NetworkRecord, NetworkSpec, SyntheticSet
from cudd_core.training import Checkpointing, TrainingConfig, fit

LabelSource = Sequence[LabelShard] | Teaching | TeacherLabels
"""Stored labels, or the teacher, which then computes them during training."""


class LossConfig(Configuration):
    """The loss for training a network on soft labels."""

    temperature: float = Field(20.0, gt=0, description="T in KL(softmax(teacher/T) ‖ softmax(student/T)).")
    loss: Annotated[Literal["kl", "mse"], Switch()] = Field(
        "kl", description="kl: KL divergence at `temperature`; mse: mean squared error of the logits (EDC)."
    )
    hard_label_weight: Annotated[float, Switch()] = Field(
        0.0, ge=0, description="Weight of an added cross-entropy with the images' classes, mixed by area (EDC: 0.025)."
    )

    def loss_identity(self) -> dict[str, Any]:
        """Return the loss's part of a stage key, with the temperature only where it is used."""
        return self.identity(
            read=LossConfig.model_fields.keys(), unread={"temperature"} if self.loss == "mse" else frozenset()
        )

    def value(self, logits: Tensor, taught: Tensor, *classes: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar. `logits`, `taught` (the teacher's): [b, K].

        `classes`: labels, partners and share as for `mixed_label`; needed if `hard_label_weight` > 0.
        """
        value = logit_error(logits, taught) if self.loss == "mse" else soft_label(logits, taught, self.temperature)
        if self.hard_label_weight > 0:
            value = value + self.hard_label_weight * mixed_label(logits, *classes)
        return value


def train_on_soft_labels(
    network: nn.Module,
    spec: NetworkSpec,
    synthetic: SyntheticSet,
    labels: LabelSource,
    training: TrainingConfig,
    loss: LossConfig,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Train `network` in place to minimise `loss` and return it as a record.

    Stored `labels` must have been made by `relabel` with the same set, batch size, `replay` and `seed`, for the
    distinct epochs of this training.
    """
    replayed = Replay(synthetic, spec, replay, training.batch_size, seed, runtime)
    source: Labels
    match labels:
        case TeacherLabels():
            source = labels
        case Teaching():
            source = TeacherLabels(labels, runtime)
        case _:
            source = StoredLabels(labels, replayed.bounds)
    distinct = replay.distinct_epochs(training.epochs)
    batches = LabelledReplay(replayed, source, distinct, classes=loss.hard_label_weight > 0)
    history = fit(network, batches, loss.value, training, runtime, checkpointing=checkpointing, progress=progress)
    return NetworkRecord.of(network, spec, history)


def train_on_classes(
    network: nn.Module,
    spec: NetworkSpec,
    synthetic: SyntheticSet,
    training: TrainingConfig,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Train `network` in place on the images' classes (hard labels) and return it as a record.

    The batches are those of `train_on_soft_labels`, pixel for pixel. A mixed image counts for the classes of both its
    sources, weighted by their shares of its pixels (Yun et al., CutMix, 2019, Eq. 1).
    """
    replayed = Replay(synthetic, spec, replay, training.batch_size, seed, runtime)
    batches = ClassReplay(replayed, replay.distinct_epochs(training.epochs))
    history = fit(network, batches, mixed_label, training, runtime, checkpointing=checkpointing, progress=progress)
    return NetworkRecord.of(network, spec, history)
