"""Task: the teacher θ*, trained or loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.errors import ModelError
from cudd_core.models.architectures import arch_identity
from cudd_core.progress import Progress
from cudd_core.records import NetworkRecord
from cudd_core.stages import load_teacher as loading
from cudd_core.stages import squeeze as training
from cudd_core.teacher import TeacherConfig
from tasks.context import StageContext
from tasks.data_parallel import train
from tasks.mlflow_calls import Gone
from tasks.refs import Ref
from tasks.stage import epoch_metrics, run_stage, stage_task
from tasks.teachers import which
from tasks.trainings import TeacherTraining

_LOADED = {"arch", "class_names", "class_order", "mean", "std"}
_FIELDS = {
    "train": {"arch", "training", "crop", "flip"},
    "torchvision": _LOADED | {"weights"},
    "timm": _LOADED | {"weights"},
    "file": _LOADED,
    "mlflow": _LOADED | {"weights"},
}
"""Source → fields of `TeacherConfig` that enter its key: those it reads. (timm's `weights` are always empty.)

A file enters the key by its content.
"""


@stage_task("squeeze", "squeeze {config.arch}")
def squeeze(context: StageContext, config: TeacherConfig, number: int = 1) -> State[Ref]:
    """Train the teacher on T, load pretrained weights, or take the teacher that another run left in the store.

    `number`: which of several teachers, for logs.
    """
    # The teacher's own seed replaces the run's, so a run with that seed trains the same teacher under the same key.
    context = context if config.seed is None else replace(context, seed=config.seed)
    if config.threads and context.compute.device == "cpu":
        # The same as setting compute.threads for the teacher: the same key, so the same teacher.
        context = replace(context, compute=context.compute.model_copy(update={"threads": config.threads}))
    inputs: dict[str, Ref | str] = {"data": context.data.train}
    fields = _FIELDS[config.source]
    if config.source == "file":
        inputs["weights"] = context.weights.get(config.weights) or file_digest(config)

    def body(runtime: Runtime, work: Path, progress: Progress) -> NetworkRecord:
        if config.source == "train":
            teacher = TeacherTraining(
                data=context.data.config, decoded=context.store.decoded_folder, config=config, seed=context.seed
            )
            return train(context, teacher, {}, runtime, work, progress)
        if config.source == "mlflow":
            return _of_another_run(context, config)
        return loading.load_teacher(config, context.train_images())

    return run_stage(
        context,
        stage="squeeze",
        title=f"squeeze {config.arch}{which(number)}",
        version=training.VERSION if config.source == "train" else loading.VERSION,
        config={"source": config.source, **config.identity(read=fields), "arch": arch_identity(config.arch)},
        inputs=inputs,
        body=body,
        computes=config.source == "train",
        draws=config.source == "train",
        trains=config.source == "train",
        metrics_of=lambda record: epoch_metrics(record.history),
    )


def file_digest(config: TeacherConfig) -> str:
    """Return the digest of a teacher's file. Raises ModelError if it cannot be read."""
    return loading.teacher_file_digest(Path(config.weights).expanduser())


def _of_another_run(context: StageContext, config: TeacherConfig) -> NetworkRecord:
    try:
        ref = context.store.reference(config.weights)
    except Gone as error:
        raise ModelError(f"teacher.weights = {config.weights}: {error}") from error
    record = context.store.fetch(ref)
    if not isinstance(record, NetworkRecord):
        raise ModelError(f"teacher.weights: MLflow run {config.weights} holds no network.")
    return loading.stored_teacher(record, config, context.data.open_train(), f"MLflow run {config.weights}")
