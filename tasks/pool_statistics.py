"""Task: the statistics of a curriculum's pool in the teacher's BatchNorm layers."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.progress import Progress
from cudd_core.records import LayerStatistics, NetworkRecord, Verdicts
from cudd_core.stages import pool_statistics as stage
from tasks.context import StageContext
from tasks.refs import Ref
from tasks.stage import fetch, run_stage, stage_task
from tasks.teachers import which


@stage_task("statistics", "statistics of curriculum {curriculum}")
def pool_statistics(
    context: StageContext,
    network: Ref,
    right: tuple[Ref, ...],
    wrong: tuple[Ref, ...],
    curriculum: int,
    number: int = 1,
) -> State[Ref]:
    """Compute the statistics of R ∩ W over all class blocks.

    `network`: whose layers are used, the teacher or a further one. `right`: the teacher's verdicts; `wrong`: the
    student's, if any. `curriculum` and `number` (which of several teachers) are for logs.
    """

    def body(runtime: Runtime, work: Path, progress: Progress) -> LayerStatistics:
        return stage.pool_statistics(
            fetch(context, network, NetworkRecord),
            [fetch(context, ref, Verdicts) for ref in right],
            [fetch(context, ref, Verdicts) for ref in wrong],
            context.train_images(),
            runtime,
            progress=progress,
        )

    return run_stage(
        context,
        stage="statistics",
        title=f"statistics {curriculum}{which(number)}",
        version=stage.VERSION,
        config={},
        inputs={
            "teacher": network,
            "data": context.data.train,
            "right": right,
            "wrong": wrong,
        },
        body=body,
        computes=True,
        draws=False,
        metrics_of=lambda record: [("images", float(record.images), 0)],
    )
