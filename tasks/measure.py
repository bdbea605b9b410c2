"""Tasks that measure accuracy: of a teacher before anything else, of any network, of the teacher on a folder's set."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.class_order import exchanged_classes, in_words
from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.measurement import accuracy_of, answers_to, measure
from cudd_core.progress import Progress
from cudd_core.records import Accuracy, NetworkRecord
from cudd_core.stages import squeeze
from cudd_core.teacher import TeacherConfig
from tasks.context import StageContext
from tasks.mlflow_runs import MetricRow
from tasks.refs import Ref
from tasks.sets import load_set, set_digest
from tasks.stage import fetch, run_stage, stage_task
from tasks.teachers import which

VERSION = 2
"""Raised whenever measurements change. 2: they are kept by class."""

_log = logging.getLogger("cudd.measure")


def _metrics(record: Accuracy) -> list[MetricRow]:
    return [("test_accuracy", record.accuracy, 0), ("balanced_accuracy", record.balanced, 0)]


@stage_task("preflight", "preflight")
def preflight(context: StageContext, teacher: Ref, config: TeacherConfig, number: int = 1) -> State[Ref]:
    """Check the teacher's classes against the data's and measure its accuracy; refuse one near chance.

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
    """Measure a student or a fresh network on the test split; no choice depends on it. `name` is for logs."""

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


@stage_task("measure-set", "measure the teacher on the set")
def measure_set(context: StageContext, teacher: Ref, shards: tuple[Ref, ...]) -> State[Ref]:
    """Measure the share of a set's images that the teacher assigns to the class that they are labelled as.

    Warns if the set's classes seem to be in another order than the data's. Nothing else would reveal this, since
    networks learn from the teacher's answers.
    """

    def body(runtime: Runtime, work: Path, progress: Progress) -> Accuracy:
        synthetic = load_set(context, shards)
        images = ArraySplit(synthetic.images, synthetic.labels, synthetic.class_names)
        answers = answers_to(images, fetch(context, teacher, NetworkRecord), runtime, progress=progress)
        if exchanged := exchanged_classes(answers, images.labels, len(images.class_names)):
            _log.warning(
                "The teacher takes most images of %s: the set's classes seem to be in another order than the data's. "
                "If so, rename or renumber its folders; what follows would be wrong.",
                in_words(exchanged, images.class_names),
            )
        return accuracy_of(answers, images)

    return run_stage(
        context,
        stage="measure",
        title="measure the teacher on the set",
        version=VERSION,
        config={},
        inputs={"network": teacher, "set": set_digest(shards)},
        body=body,
        computes=True,
        draws=False,
        metrics_of=_metrics,
    )
