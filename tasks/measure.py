"""Tasks: test accuracy of the teacher, before anything else, and of every network trained on a synthetic set."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.measurement import measure
from cudd_core.progress import Progress
from cudd_core.records import Accuracy, NetworkRecord
from cudd_core.stages import squeeze
from cudd_core.teacher import TeacherConfig
from tasks.context import StageContext
from tasks.mlflow_runs import MetricRow
from tasks.refs import Ref
from tasks.stage import fetch, run_stage, stage_task
from tasks.teachers import which

VERSION = 1


def _metrics(record: Accuracy) -> list[MetricRow]:
    return [("test_accuracy", record.accuracy, 0)]


@stage_task("preflight", "preflight")
def preflight(context: StageContext, teacher: Ref, config: TeacherConfig, number: int = 1) -> State[Ref]:
    """Check the teacher's classes against the data's and measure it; refuse one near chance.

    `number`: which of several teachers, for logs.
    """

    def body(runtime: Runtime, work: Path, progress: Progress) -> Accuracy:
        network = fetch(context, teacher, NetworkRecord)
        return squeeze.preflight(network, context.test_images(), config, runtime, progress=progress)

    return run_stage(
        context,
        stage="preflight",
        title=f"preflight{which(number)}",
        version=VERSION,
        config=config.model_dump(include={"minimum_margin"}),
        inputs={"teacher": teacher, "data": context.data.test},
        body=body,
        computes=True,
        draws=False,
        metrics_of=_metrics,
    )


@stage_task("measure", "measure {name}")
def measure_network(context: StageContext, network: Ref, name: str) -> State[Ref]:
    """Measure a student or a fresh network on the test split; nothing is chosen by it. `name` is for logs."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Accuracy:
        return measure(fetch(context, network, NetworkRecord), context.test_images(), runtime, progress=progress)

    return run_stage(
        context,
        stage="measure",
        title=f"measure {name}",
        version=VERSION,
        config={},
        inputs={"network": network, "data": context.data.test},
        body=body,
        computes=True,
        draws=False,
        metrics_of=_metrics,
    )
