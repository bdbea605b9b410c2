"""Task: the teachers' soft labels for some epochs."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.labelling import Teaching
from cudd_core.progress import Progress
from cudd_core.records import LabelShard, NetworkRecord
from cudd_core.stages import relabel as stage
from cudd_core.stages.relabel import RelabelConfig
from tasks.context import StageContext
from tasks.naming import span
from tasks.refs import Ref
from tasks.sets import load_set, set_digest
from tasks.stage import fetch, run_stage, stage_task
from tasks.teachers import fetch_others


@stage_task("relabel", "relabel {name} epochs {epochs}")
def relabel(
    context: StageContext,
    teacher: Ref,
    shards: tuple[Ref, ...],
    name: str,
    epochs: range,
    batch_size: int,
    config: RelabelConfig,
    temperature: float,
    others: tuple[Ref, ...] = (),
) -> State[Ref]:
    """Label the augmented, mixed batches of `epochs` over the set that `shards` make up. `name` is for logs.

    `temperature`: that of the training; only labels without their smallest logits (top-k) depend on it. `others`:
    further teachers besides `teacher`.
    """
    pruned = config.storage.startswith("topk")

    def body(runtime: Runtime, work: Path, progress: Progress) -> LabelShard:
        return stage.relabel(
            Teaching(fetch(context, teacher, NetworkRecord), config.batch_statistics, fetch_others(context, others)),
            load_set(context, shards),
            epochs,
            batch_size,
            config,
            context.seed,
            runtime,
            form=config.form(temperature),
            progress=progress,
        )

    return run_stage(
        context,
        stage="relabel",
        title=f"relabel {name} epochs {span(epochs)}",
        version=stage.VERSION,
        config={
            # How often labels are used concerns only the trainings that use them.
            **config.identity(unread={"epochs_per_shard", "reuse", *(() if pruned else ("top",))}),
            **({"temperature": temperature} if pruned else {}),
            "batch_size": batch_size,
            "epochs": [epochs.start, epochs.stop],
        },
        inputs={"teacher": teacher, "set": set_digest(shards), "other teacher": others},
        body=body,
        computes=True,
        draws=True,
    )
