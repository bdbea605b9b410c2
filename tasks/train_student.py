"""Task: the student φ_j."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.models.architectures import arch_identity
from cudd_core.progress import Progress
from cudd_core.records import NetworkRecord
from cudd_core.stages import train_student as stage
from cudd_core.stages.relabel import RelabelConfig
from cudd_core.stages.train_student import StudentConfig
from tasks.context import StageContext
from tasks.data_parallel import train
from tasks.labels import replay_identity
from tasks.refs import Ref
from tasks.sets import set_digest
from tasks.stage import epoch_metrics, run_stage, stage_task
from tasks.trainings import StudentTraining


@stage_task("train-student", "train student {curriculum}")
def train_student(
    context: StageContext,
    teacher: Ref,
    previous: Ref | None,
    shards: tuple[Ref, ...],
    labels: tuple[Ref, ...],
    curriculum: int,
    config: StudentConfig,
    replay: RelabelConfig,
    others: tuple[Ref, ...] = (),
) -> State[Ref]:
    """Train φ_j on S_{1:j}, starting from φ_{j-1} if there is one. `others`: further teachers besides `teacher`."""
    previous = previous if config.warm_start else None
    # If labels are stored, their digests already reflect everything that made them.
    others = others if replay.storage == "none" else ()

    def body(runtime: Runtime, work: Path, progress: Progress) -> NetworkRecord:
        training = StudentTraining(
            class_names=context.data.open_train().class_names,
            replay=replay,
            seed=context.seed,
            curriculum=curriculum,
            config=config,
        )
        inputs = {
            "teacher": (teacher,),
            "others": others,
            "shards": shards,
            "labels": labels,
            "previous": (previous,) if previous else (),
        }
        return train(context, training, inputs, runtime, work, progress)

    return run_stage(
        context,
        stage="train_student",
        title=f"train student {curriculum}",
        version=stage.VERSION,
        config={
            "arch": arch_identity(config.arch),
            **config.loss_identity(),
            "training": config.training_of(curriculum).identity(),
            **replay_identity(replay),
            "curriculum": curriculum,
        },
        inputs={
            "teacher": teacher,
            "set": set_digest(shards),
            "other teacher": others,
            "previous": previous,
            "labels": labels,
        },
        body=body,
        computes=True,
        draws=True,
        trains=True,
        metrics_of=lambda record: epoch_metrics(record.history),
    )
