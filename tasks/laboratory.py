"""Tasks of the laboratories: networks under corruptions, classes learnt in steps, sets compared with the originals."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.data.corrupted import CorruptedSplit
from cudd_core.data.corruptions import VERSION as CORRUPTIONS_VERSION
from cudd_core.data.subset import split_of_classes
from cudd_core.labelling import Teaching
from cudd_core.measurement import measure, measure_together
from cudd_core.models.architectures import arch_identity
from cudd_core.progress import Progress
from cudd_core.records import Accuracies, Accuracy, Coverage, NetworkRecord
from cudd_core.stages import coverage as coverage_stage
from cudd_core.stages import learn_classes as learn_stage
from cudd_core.stages.relabel import RelabelConfig
from cudd_core.stages.train_network import EvaluationConfig
from cudd_core.training import Checkpointing
from tasks.context import StageContext
from tasks.labels import replay_identity
from tasks.measure import VERSION as MEASURE_VERSION
from tasks.refs import Ref
from tasks.sets import load_set, set_digest
from tasks.stage import epoch_metrics, fetch, run_stage, stage_task
from tasks.teachers import fetch_others

VERSION = 1
"""Version of the measurements of corrupted images; raised whenever their results change."""


@stage_task("measure-corrupted", "measure {corruption} severity {severity}")
def measure_corrupted(context: StageContext, networks: tuple[Ref, ...], corruption: str, severity: int) -> State[Ref]:
    """Measure all `networks` on one corrupted test split, whose images are made once for all of them."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Accuracies:
        split = CorruptedSplit(context.test_images(), corruption, severity, context.seed)
        return measure_together([fetch(context, ref, NetworkRecord) for ref in networks], split, runtime,
                                progress=progress)  # fmt: skip

    return run_stage(
        context,
        stage="measure_corrupted",
        title=f"measure {corruption} severity {severity}",
        version=VERSION,
        config={"corruption": corruption, "severity": severity, "corruptions": CORRUPTIONS_VERSION},
        inputs={"data": context.data.test, "network": networks},
        body=body,
        computes=True,
        draws=True,
        metrics_of=lambda record: [("mean_test_accuracy", float(record.values.mean()), severity)],
    )


@stage_task("learn-classes", "learn classes {method} {arch} #{number} step {step}")
def learn_classes(
    context: StageContext,
    teacher: Ref,
    shards: tuple[Ref, ...],
    method: str,
    arch: str,
    number: int,
    step: int,
    classes: tuple[int, ...],
    config: EvaluationConfig,
    replay: RelabelConfig,
    others: tuple[Ref, ...] = (),
) -> State[Ref]:
    """Train the `number`-th fresh `arch` on the set's images of `classes`. `method` and `step` are for logs.

    `others`: further teachers besides `teacher`.
    """
    # Whatever the recipe stores, this training has its labels computed as it goes: its key needs all they depend on.
    unstored = replay.model_copy(update={"storage": "none"})

    def body(runtime: Runtime, work: Path, progress: Progress) -> NetworkRecord:
        return learn_stage.learn_classes(
            load_set(context, shards),
            Teaching(fetch(context, teacher, NetworkRecord), replay.batch_statistics, fetch_others(context, others)),
            classes,
            arch,
            number,
            config.training,
            config,
            replay,
            context.seed,
            runtime,
            checkpointing=Checkpointing(work / "checkpoint", config.checkpoint_every),
            progress=progress,
        )

    return run_stage(
        context,
        stage="learn_classes",
        title=f"learn classes {method} {arch} #{number} step {step}",
        version=learn_stage.VERSION,
        config={
            "arch": arch_identity(arch),
            "number": number,
            "classes": classes,
            **config.loss_identity(),
            "training": config.training.identity(),
            **replay_identity(unstored),
        },
        inputs={"teacher": teacher, "set": set_digest(shards), "other teacher": others},
        body=body,
        computes=True,
        draws=True,
        metrics_of=lambda record: epoch_metrics(record.history),
    )


@stage_task("measure-classes", "measure {name}")
def measure_classes(context: StageContext, network: Ref, classes: tuple[int, ...], name: str) -> State[Ref]:
    """Measure a network that was trained on `classes` on their test images. `name` is for logs."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Accuracy:
        split = split_of_classes(context.test_images(), classes)
        return measure(fetch(context, network, NetworkRecord), split, runtime, progress=progress)

    return run_stage(
        context,
        stage="measure_classes",
        title=f"measure {name}",
        version=MEASURE_VERSION,
        config={"classes": classes},
        inputs={"network": network, "data": context.data.test},
        body=body,
        computes=True,
        draws=False,
        metrics_of=lambda record: [("test_accuracy", record.accuracy, len(classes))],
    )


@stage_task("coverage", "coverage class {label}")
def coverage(
    context: StageContext, teacher: Ref, names: tuple[str, ...], sets: tuple[tuple[Ref, ...], ...], label: int, k: int
) -> State[Ref]:
    """Compare the images of class `label` in `sets`, named `names`, with its originals. `k`: number of neighbours."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Coverage:
        return coverage_stage.coverage(
            fetch(context, teacher, NetworkRecord),
            context.train_images(),
            {name: load_set(context, shards) for name, shards in zip(names, sets, strict=True)},
            label,
            k,
            context.seed,
            runtime,
            progress=progress,
        )

    return run_stage(
        context,
        stage="coverage",
        title=f"coverage class {label}",
        version=coverage_stage.VERSION,
        config={"class": label, "neighbours": k, "sets": names},
        inputs={
            "teacher": teacher,
            "data": context.data.train,
            **{f"set {name}": set_digest(shards) for name, shards in zip(names, sets, strict=True)},
        },
        body=body,
        computes=True,
        draws=True,
    )
