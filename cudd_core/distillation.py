"""Training a network on a synthetic set and its soft labels: students and evaluation both do exactly this."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from cudd_core.data.replay import LabelledReplay, Replay, ReplayConfig
from cudd_core.losses.soft_label import soft_label
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, NetworkSpec, SoftLabels, SyntheticSet
from cudd_core.runtime import Runtime
from cudd_core.training import Checkpointing, TrainingConfig, fit


def train_on_soft_labels(
    network: nn.Module,
    spec: NetworkSpec,
    synthetic: SyntheticSet,
    labels: Sequence[SoftLabels],
    training: TrainingConfig,
    temperature: float,
    replay: ReplayConfig,
    seed: int,
    runtime: Runtime,
    *,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    """Train `network` in place with KL(softmax(teacher/T) ‖ softmax(student/T)) and return it as a record.

    `labels` must have been made by `relabel` with the same set, batch size, `replay` and `seed`.
    """
    batches = LabelledReplay(Replay(synthetic, spec, replay, training.batch_size, seed, runtime), labels)

    def loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        return soft_label(student_logits, teacher_logits, temperature)

    history = fit(network, batches, loss, training, runtime, checkpointing=checkpointing, progress=progress)
    state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    return NetworkRecord(spec, state, tuple(history))
