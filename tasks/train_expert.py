"""Task: one expert, whose training trajectory synthesis matches later."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.data import decode_ahead
from cudd_core.objectives.configuration import MttConfig
from cudd_core.progress import Progress
from cudd_core.records import Trajectory
from cudd_core.stages import train_expert as stage
from tasks.context import StageContext
from tasks.refs import Ref
from tasks.stage import epoch_metrics, run_stage, stage_task

FIELDS = frozenset({"arch", "expert_epochs", "expert_batch_size", "expert_learning_rate", "crop", "flip"})
"""The fields of `MttConfig` that an expert reads."""


@stage_task("train-expert", "train expert {number}")
def train_expert(context: StageContext, number: int, config: MttConfig) -> State[Ref]:
    """Train the `number`-th expert on T."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Trajectory:
        split = context.train_images()
        decode_ahead(split, progress)
        return stage.train_expert(
            split,
            config,
            number,
            context.seed,
            runtime,
            checkpoints=work / "checkpoint",
            progress=progress,
        )

    return run_stage(
        context,
        stage="train_expert",
        title=f"train expert {number}",
        version=stage.VERSION,
        config={**config.model_dump(include=set(FIELDS)), "number": number},
        inputs={"data": context.data.train},
        body=body,
        computes=True,
        draws=True,
        metrics_of=lambda record: epoch_metrics(record.history),
    )
