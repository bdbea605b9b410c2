"""Training a network on a synthetic set: students and evaluation both do exactly this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from cudd_core.training import Batches, Checkpointing, TrainingConfig, fit

LabelSource = Sequence[LabelShard] | Teaching | TeacherLabels
"""Stored labels, or the teacher, which then computes them during training."""


class LossConfig(Configuration):
    """The loss for training a network on soft labels."""

    temperature: float = Field(20.0, gt=0, description="T in KL(softmax(teacher/T) ‖ softmax(student/T)).")
    loss: Annotated[Literal["kl", "mse"], Switch()] = Field(
        "kl", description="kl: KL divergence at `temperature`; mse: mean squared error of the logits (EDC)."
    )
    hard_label_weight: Annotated[float, Switch()] = Field(
        0.0,
        ge=0,
        description="Weight of an added cross-entropy with the images' classes, mixed by area (EDC: 0.025, beside mse; "
        "it outweighs KL at T = 20).",
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


def train_on_set(
    network: nn.Module,
    spec: NetworkSpec,
    synthetic: SyntheticSet,
    labels: LabelSource | None,
    training: TrainingConfig,
    loss: LossConfig,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Train `network` in place on a set and return it as a record.

    With `labels` it minimises `loss`. Stored ones must have been made by `relabel` with the same set, batch size,
    `replay` and `seed`, for the distinct epochs of this training. Without, it minimises the cross-entropy with the
    images' classes (hard labels) on the same batches, pixel for pixel; a mixed image counts for the classes of both its
    sources, weighted by their shares of its pixels (Yun et al., CutMix, 2019, Eq. 1).
    """
    replayed = Replay(synthetic, spec, replay, training.batch_size, seed, runtime)
    distinct = replay.distinct_epochs(training.epochs)
    batches: Batches = ClassReplay(replayed, distinct)
    value: Callable[..., Tensor] = mixed_label
    if labels is not None:
        source = _source(labels, replayed, runtime)
        batches = LabelledReplay(replayed, source, distinct, classes=loss.hard_label_weight > 0)
        value = loss.value
    history = fit(network, batches, value, training, runtime, checkpointing=checkpointing, progress=progress)
    return NetworkRecord.of(network, spec, history)


def _source(labels: LabelSource, replayed: Replay, runtime: Runtime) -> Labels:
    match labels:
        case TeacherLabels():
            return labels
        case Teaching():
            return TeacherLabels(labels, runtime)
        case _:
            return StoredLabels(labels, replayed.bounds)
