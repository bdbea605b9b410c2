"""Task: what a curriculum's pool gives the teacher's BatchNorm layers."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from cudd_core.progress import Progress
from cudd_core.records import LayerStatistics, NetworkRecord, Verdicts
from cudd_core.runtime import Runtime
from cudd_core.stages import pool_statistics as stage
from tasks.refs import Ref
from tasks.stage import StageContext, fetch, run_stage


@task(name="statistics", task_run_name="statistics of curriculum {curriculum}", cache_policy=NO_CACHE)
def pool_statistics(
    context: StageContext, teacher: Ref, right: tuple[Ref, ...], wrong: tuple[Ref, ...], curriculum: int
) -> State[Ref]:
    """Take statistics of R ∩ W over all class blocks: `right` the teacher's verdicts, `wrong` the student's, if any.

    `curriculum` is a name for logs.
    """

    def body(runtime: Runtime, work: Path, progress: Progress) -> LayerStatistics:
        return stage.pool_statistics(
            fetch(context, teacher, NetworkRecord),
            [fetch(context, ref, Verdicts) for ref in right],
            [fetch(context, ref, Verdicts) for ref in wrong],
            context.train_images(),
            runtime,
            progress=progress,
        )

    return run_stage(
        context,
        stage="statistics",
        title=f"statistics {curriculum}",
        version=stage.VERSION,
        config={},
        inputs={
            "teacher": teacher,
            "data": context.data.train,
            **{f"right {number}": ref for number, ref in enumerate(right)},
            **{f"wrong {number}": ref for number, ref in enumerate(wrong)},
        },
        body=body,
        computes=True,
        draws=False,
        metrics_of=lambda record: [("images", float(record.images), 0)],
    )
