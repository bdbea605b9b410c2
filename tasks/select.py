"""Task: the originals T_j of one class block."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.progress import Progress
from cudd_core.records import Features, Selection, Verdicts
from cudd_core.stages import select as stage
from cudd_core.stages.select import SelectConfig
from tasks.caching import EXTRA_FOLDER
from tasks.context import StageContext
from tasks.naming import span
from tasks.refs import Ref
from tasks.stage import fetch, run_stage, stage_task


@stage_task("select", "select slices {slices}, classes {classes}")
def select(
    context: StageContext,
    classes: range,
    slices: range,
    teacher: Ref | None,
    student: Ref | None,
    earlier: tuple[Ref, ...],
    config: SelectConfig,
    features: Ref | None = None,
) -> State[Ref]:
    """Choose `slices` for `classes` by verdicts or features, leaving out images that `earlier` selections took.

    `tiers.csv`, stored beside the record, says how many images of each class came from which pool.
    """

    def body(runtime: Runtime, work: Path, progress: Progress) -> Selection:
        split = context.data.open_train()
        taken = [fetch(context, ref, Selection).indices.flatten() for ref in earlier]
        chosen = stage.select(
            split.labels,
            classes,
            slices,
            fetch(context, teacher, Verdicts) if teacher else None,
            fetch(context, student, Verdicts) if student else None,
            torch.cat(taken) if taken else torch.empty(0, dtype=torch.int64),
            config,
            context.seed,
            fetch(context, features, Features) if features else None,
        )
        _save_tiers(chosen, split.class_names, work)
        return chosen

    return run_stage(
        context,
        stage="select",
        title=f"select slices {span(slices)}, classes {span(classes)}",
        version=stage.VERSION,
        config={
            **config.model_dump(),
            "classes": [classes.start, classes.stop],
            "slices": [slices.start, slices.stop],
        },
        inputs={
            "data": context.data.train,
            "teacher": teacher,
            "student": student,
            "features": features,
            "earlier": earlier,
        },
        body=body,
        computes=False,
        draws=not config.geometric,
        metrics_of=lambda record: [(f"tier_{name}", float(n), 0) for name, n in record.tier_counts().items()],
    )


def _save_tiers(chosen: Selection, class_names: Sequence[str], work: Path) -> None:
    """Save a table, classes × pools, beside the record: how many images of each class came from each pool."""
    extra = work / EXTRA_FOLDER
    extra.mkdir(parents=True, exist_ok=True)
    counts = chosen.tier_counts_by_class()
    with (extra / "tiers.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["class", *counts])
        for place, label in enumerate(chosen.classes.tolist()):
            rows.writerow([class_names[label], *(int(column[place]) for column in counts.values())])
