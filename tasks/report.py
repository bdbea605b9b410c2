"""Task: the pictures of a report. Whatever changes with every run, such as times, is in the text, not in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.progress import Progress
from cudd_core.records import Accuracy, NetworkRecord, Pictures, Shard, SyntheticSet
from cudd_core.reporting.accuracy import accuracy_figure
from cudd_core.reporting.classes import class_table
from cudd_core.reporting.curves import training_curves
from cudd_core.reporting.grid import preview_grid
from cudd_core.reporting.poster import poster
from cudd_core.reporting.tables import Table, summary_of
from cudd_core.reporting.theme import png_bytes
from tasks.context import StageContext
from tasks.refs import ByNetwork, Ref
from tasks.shards import first_batch
from tasks.stage import fetch, run_stage, stage_task

VERSION = 2
"""Raised whenever the same results are to be drawn again."""

GRID_CLASSES = 10
"""How many classes a curriculum's grid shows, counted from the first."""


@dataclass(frozen=True)
class ShownRound:
    """One curriculum as the report shows it. `shards`: those that hold the grid's classes, first shard first."""

    title: str
    shards: tuple[Ref, ...]
    student: Ref | None


@stage_task("report", "report")
def report(context: StageContext, rounds: tuple[ShownRound, ...], teacher: Ref, evaluations: ByNetwork) -> State[Ref]:
    """Draw `accuracy`, `poster`, and for every round `TITLE: grid`, `TITLE: losses` and `TITLE: student`."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Pictures:
        grids, curves = {}, {}
        for each in rounds:
            shards = [fetch(context, ref, Shard) for ref in each.shards]
            grids[f"{each.title}: grid"] = _grid(context, shards)
            if losses := shards[0].history:
                minimised = "distance to experts" if "trajectory" in losses[0] else "Eq. 6, first batch"
                title = f"{each.title}: {minimised}"
                curves[f"{each.title}: losses"] = training_curves(first_batch(losses), title)
            if each.student is not None:
                title = f"{each.title}: student"
                curves[title] = training_curves(fetch(context, each.student, NetworkRecord).history, title)
        figure = accuracy_figure(accuracies(context, teacher, evaluations))
        drawn = {"accuracy": figure, "poster": poster(figure, grids[f"{rounds[-1].title}: grid"]), **grids, **curves}
        return Pictures.of({title: png_bytes(image) for title, image in drawn.items()})

    shards = {f"round {r} shard": each.shards for r, each in enumerate(rounds)}
    students = {f"round {r} student": each.student for r, each in enumerate(rounds)}
    measured = {
        f"network {n} {method} {arch}": ref
        for method, by_arch in evaluations.items()
        for arch, refs in by_arch.items()
        for n, ref in enumerate(refs)
    }
    return run_stage(
        context,
        stage="report",
        title="report",
        version=VERSION,
        config={"titles": [each.title for each in rounds]},
        inputs={"data": context.data.train, "teacher": teacher, **shards, **students, **measured},
        body=body,
        computes=False,
        draws=False,
    )


def accuracies(context: StageContext, teacher: Ref, evaluations: ByNetwork) -> dict[str, Any]:
    """Return the teacher's accuracy and, by method and architecture, the `summary_of` its networks and `balanced`."""
    measured: dict[str, Any] = {"teacher": fetch(context, teacher, Accuracy).accuracy}
    for method, by_arch in evaluations.items():
        measured[method] = {
            arch: _summary_of([fetch(context, ref, Accuracy) for ref in refs]) for arch, refs in by_arch.items()
        }
    return measured


def _summary_of(measured: list[Accuracy]) -> dict[str, Any]:
    shares = summary_of([each.accuracy for each in measured])
    return {**shares, "balanced": fmean(each.balanced for each in measured)}


def accuracies_by_class(context: StageContext, teacher: Ref, evaluations: ByNetwork) -> Table:
    """Return the accuracy on each class: of each method on each architecture, mean of its networks; of the teacher."""
    of_teacher = fetch(context, teacher, Accuracy)
    measured = {
        f"{method} {arch}": torch.stack([fetch(context, ref, Accuracy).by_class for ref in refs]).mean(0).tolist()
        for method, by_arch in evaluations.items()
        for arch, refs in by_arch.items()
    }
    names = context.test_images().class_names
    return class_table(names, of_teacher.images.tolist(), {**measured, "teacher": of_teacher.by_class.tolist()})


def _grid(context: StageContext, shards: list[Shard]) -> Any:
    """Return a picture of originals above the synthetic images that were made of them."""
    split = context.train_images()
    joined = SyntheticSet.assemble(shards, split.class_names)
    shown = (joined.labels < GRID_CLASSES).nonzero().flatten()
    sources = joined.sources[shown]
    originals = split.images(sources) if bool((sources >= 0).all()) else None
    columns = min(GRID_CLASSES, len(split.class_names))
    return preview_grid(originals, joined.images[shown], split.class_names, joined.labels[shown], columns=columns)
