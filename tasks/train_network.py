"""Task: one fresh network trained on a set."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.models.architectures import arch_identity
from cudd_core.progress import Progress
from cudd_core.records import NetworkRecord
from cudd_core.stages import train_network as stage
from cudd_core.stages.relabel import RelabelConfig
from cudd_core.stages.train_network import EvaluationConfig
from tasks.context import StageContext
from tasks.data_parallel import train
from tasks.labels import replay_identity
from tasks.refs import Ref
from tasks.sets import set_digest
from tasks.stage import epoch_metrics, run_stage, stage_task
from tasks.trainings import NetworkTraining


@stage_task("train-network", "train network {method} {arch} #{number}")
def train_network(
    context: StageContext,
    teacher: Ref,
    shards: tuple[Ref, ...],
    labels: tuple[Ref, ...],
    method: str,
    arch: str,
    number: int,
    config: EvaluationConfig,
    replay: RelabelConfig,
    others: tuple[Ref, ...] = (),
) -> State[Ref]:
    """Train the `number`-th fresh `arch` on the set; hard labels need no `labels`. `method` is a name for logs.

    `others`: further teachers besides `teacher`.
    """
    # If labels are stored, their digests already reflect everything that made them.
    others = others if replay.storage == "none" and config.labels == "soft" else ()

    def body(runtime: Runtime, work: Path, progress: Progress) -> NetworkRecord:
        training = NetworkTraining(
            class_names=context.data.open_train().class_names,
            replay=replay,
            seed=context.seed,
            arch=arch,
            number=number,
            config=config,
        )
        inputs = {"teacher": (teacher,), "others": others, "shards": shards, "labels": labels}
        return train(context, training, inputs, runtime, work, progress)

    return run_stage(
        context,
        stage="train_network",
        title=f"train network {method} {arch} #{number}",
        version=stage.VERSION,
        config={
            "arch": arch_identity(arch),
            "number": number,
            **config.target_identity(),
            "training": config.training.identity(),
            **replay_identity(replay),
        },
        inputs={
            "teacher": teacher,
            "set": set_digest(shards),
            "other teacher": others,
            "labels": labels,
        },
        body=body,
        computes=True,
        draws=True,
        trains=True,
        metrics_of=lambda record: epoch_metrics(record.history),
    )
