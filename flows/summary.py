"""The end of a run: the summary (a contract), the report, and what both UIs show of it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import resource
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from prefect.artifacts import create_image_artifact, create_table_artifact
from prefect.runtime import flow_run

from cudd_core import software_version
from cudd_core.data.replay import batch_bounds
from cudd_core.records import Accuracy, NetworkRecord, Pictures, Selection
from cudd_core.reporting.page import write_report
from cudd_core.reporting.reading import CURRICULUM_STAGES
from cudd_core.reporting.tables import shown_summary
from cudd_core.schedule import cut
from cudd_core.training import TrainingConfig
from flows.recipe import Recipe
from flows.recipe_text import as_yaml
from flows.recipes import changes_of
from flows.results import IMPORTED, Curriculum, Results
from flows.run import PipelineRun
from flows.servers import mlflow_file, mlflow_pages
from tasks.addresses import SUMMARY_FILE, home_folder, results_folder
from tasks.pages import show
from tasks.refs import Ref
from tasks.report import GRID_CLASSES, ShownRound, accuracies, accuracies_by_class
from tasks.report import report as draw_report
from tasks.stage import fetch

RECIPE_COPY = "recipe.yaml"
"""File beside a report: the complete recipe, which `cudd distill` can read."""
_FEW = 8
"""The most changes to a named recipe that a command lists; beyond that, it names a recipe file."""


def finish(
    run: PipelineRun, recipe: Recipe, results: Results, more: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return the summary with `more`; log it, the report and the pictures to MLflow, the closing table to Prefect."""
    store, context = run.context.store, run.context
    png = fetch(context, illustrate(run, recipe, results), Pictures).files()
    folder = results_folder(home_folder(), context.pipeline_run)
    summary = {**summarize(run, recipe, results), **more, "command": command_of(recipe, folder / RECIPE_COPY, more)}
    grids = {_title(each): png[f"{_title(each)}: grid"] for each in results.curricula}
    curves = {title: picture for title, picture in png.items() if title.endswith((": losses", ": student"))}
    by_class = accuracies_by_class(context, results.teacher.accuracy, results.evaluations)
    write_report(folder, summary, png["poster"], png["accuracy"], grids, curves, by_class)
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2))
    (folder / RECIPE_COPY).write_text(as_yaml(recipe), encoding="utf-8")
    for each, grid in zip(results.curricula, grids.values(), strict=True):
        own = folder / f"curriculum-{each.index}"
        own.mkdir(exist_ok=True)
        (own / "grid.png").write_bytes(grid)
        store.pipelines.log_files(each.round.mlflow_run, own)
    store.pipelines.log_files(context.pipeline_run, folder)
    log_metrics(run, results, summary)
    show_in_prefect(summary)
    return summary


def command_of(recipe: Recipe, copy: Path, more: Mapping[str, Any]) -> str:
    """Return the command that makes the same again, with the recipe's name and a few changes, else with its copy.

    An evaluation of a set from a folder has the copy always: the set decides fields that `--set` must not name.
    """
    if IMPORTED in more:
        return shlex.join(["cudd", "evaluate", more[IMPORTED]["folder"], "--recipe", str(copy)])
    changes = changes_of(recipe)
    if changes is None or len(changes) > _FEW:
        return shlex.join(["cudd", "distill", str(copy)])
    return shlex.join(["cudd", "distill", recipe.name, *(word for change in changes for word in ("--set", change))])


def illustrate(run: PipelineRun, recipe: Recipe, results: Results) -> Ref:
    """Have the report's pictures drawn; a run with the same results reuses them."""
    blocks = cut(range(run.context.data.num_classes), recipe.schedule.block_size)
    # Shards are in the order of the blocks, repeated for each range of slices; those of an imported set, for which
    # nothing was selected, hold all classes.
    rounds = tuple(
        ShownRound(
            _title(each),
            tuple(
                ref
                for n, ref in enumerate(each.shards)
                if not each.selections or blocks[n % len(blocks)].start < GRID_CLASSES
            ),
            each.student,
        )
        for each in results.curricula
    )
    submitted = run.submit(draw_report, rounds, results.teacher.accuracy, results.evaluations)
    (pictures,) = run.gather("report", [submitted])
    return pictures


def _title(each: Curriculum) -> str:
    return f"Curriculum {each.index} (to IPC {each.ipc})"


def summarize(run: PipelineRun, recipe: Recipe, results: Results) -> dict[str, Any]:
    """Return the summary whose keys docs/design.md promises. Accuracies are fractions, sizes bytes, times seconds."""
    context = run.context
    classes = context.data.num_classes
    return {
        "recipe": recipe.name,
        "config": recipe.model_dump(mode="json"),
        "run_id": str(flow_run.get_id() or ""),
        "mlflow_run_id": context.pipeline_run,
        "tracking_uri": context.store.display_uri,
        "reused_tasks": run.tally.reused,
        "computed_tasks": run.tally.computed,
        "curricula": [_curriculum(run, recipe, each, results) for each in results.curricula],
        "dataset": {
            "uri": f"runs:/{results.dataset.run_id}",
            "digest": results.dataset.digest,
            "images": classes * recipe.schedule.ipc,
            "classes": classes,
            "image_bytes": results.dataset.bytes,
            "label_bytes": sum(ref.bytes for ref in results.labels["distilled"]),
        },
        "accuracy": {**_teachers(run, results), **accuracies(context, results.teacher.accuracy, results.evaluations)},
        "seconds": {stage: round(seconds, 2) for stage, seconds in run.seconds.items()},
        "evaluation_steps": _steps(recipe.evaluation.training, classes * recipe.schedule.ipc),
        "peak_memory_bytes": _peak_memory(recipe),
        "device": device_name(recipe),
        "versions": versions(),
    }


def _teachers(run: PipelineRun, results: Results) -> dict[str, float]:
    """Return the test accuracy of `teacher` and, if there are further teachers, of `teacher_2` and so on."""
    refs = (results.teacher.accuracy, *results.teacher.other_accuracies)
    return {
        "teacher" if number == 1 else f"teacher_{number}": fetch(run.context, ref, Accuracy).accuracy
        for number, ref in enumerate(refs, start=1)
    }


def _steps(training: TrainingConfig, images: int) -> int:
    """Return the number of optimiser steps of a training on `images` images."""
    return training.epochs * len(batch_bounds(images, training.batch_size))


def _curriculum(run: PipelineRun, recipe: Recipe, each: Curriculum, results: Results) -> dict[str, Any]:
    tiers: dict[str, int] = {}
    for ref in each.selections:
        for name, count in fetch(run.context, ref, Selection).tier_counts().items():
            tiers[name] = tiers.get(name, 0) + count
    measured = results.students.get(each.index)
    images = run.context.data.num_classes * each.ipc
    unused = dict.fromkeys(CURRICULUM_STAGES, 0.0)
    return {
        "index": each.index,
        "ipc": each.ipc,
        "tiers": tiers,
        "student_accuracy": fetch(run.context, measured, Accuracy).accuracy if measured else None,
        "student_steps": _steps(recipe.student.training_of(each.index), images) if each.student else None,
        "seconds": {stage: round(wait, 2) for stage, wait in {**unused, **each.round.seconds}.items()},
    }


def log_metrics(run: PipelineRun, results: Results, summary: dict[str, Any]) -> None:
    """Log accuracies and seconds to the pipeline's MLflow run, and each curriculum's curves to its own."""
    store, context = run.context.store, run.context
    rows = []
    for method, by_arch in summary["accuracy"].items():
        if isinstance(by_arch, dict):
            rows += [(f"{method}_{arch}_accuracy", value["mean"], 0) for arch, value in by_arch.items()]
        else:
            rows.append((f"{method}_accuracy", by_arch, 0))
    rows += [(f"seconds_{stage}", value, 0) for stage, value in summary["seconds"].items()]
    for each, entry in zip(results.curricula, summary["curricula"], strict=True):
        if entry["student_accuracy"] is not None:
            rows.append(("student_accuracy", entry["student_accuracy"], each.index))
        own = [(f"tier_{name}", float(count), each.ipc) for name, count in entry["tiers"].items()]
        if each.student is not None:
            history = fetch(context, each.student, NetworkRecord).history
            own += [(f"student_{k}", v, int(r["epoch"])) for r in history for k, v in r.items() if k != "epoch"]
        store.pipelines.log_metrics(each.round.mlflow_run, own)
    store.pipelines.log_metrics(context.pipeline_run, [(_metric_name(name), value, step) for name, value, step in rows])


def show_in_prefect(summary: dict[str, Any]) -> None:
    """Show the closing table and, if there are MLflow pages, a picture among the flow run's artifacts."""
    teachers = iter([summary["config"]["teacher"], *summary["config"]["other_teachers"]])
    table: list[dict[str, Any]] = []
    for method, by_arch in summary["accuracy"].items():
        if not isinstance(by_arch, dict):
            name = f"{method.replace('_', ' ')} (all data)"
            table.append({"method": name, "arch": next(teachers)["arch"], "n": 1, "accuracy": f"{100 * by_arch:.2f}"})
        else:
            for arch, value in by_arch.items():
                table.append(
                    {"method": method, "arch": arch, "n": value["n"], "accuracy": shown_summary(value, digits=2)}
                )
    # Without keys, Prefect's pages open an artifact directly, not a list of all runs' artifacts with that key.
    show(create_table_artifact, table=table, description="Test accuracy in %, last epoch, mean ± std")
    pages = mlflow_pages(home_folder())
    if pages is not None:
        picture = mlflow_file(pages, summary["mlflow_run_id"], "report.png")
        show(create_image_artifact, image_url=picture, description="The report's picture")


def _metric_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in name)


def _peak_memory(recipe: Recipe) -> int:
    if recipe.compute.device == "cuda" and torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(recipe: Recipe) -> str:
    """Return what a recipe's tasks run on: this machine's device, or those of a Ray cluster that this one drives."""
    if recipe.compute.device == "cuda":
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "GPUs of a Ray cluster"
    found = re.search(r"^model name\s*:\s*(.+)$", _cpu_info(), re.MULTILINE)
    name = found[1] if found else platform.processor() or platform.machine()
    # The processor's instruction set decides how sums are rounded, and so which bytes come out; its name may not tell.
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {instructions}, {os.cpu_count()} cores, {recipe.compute.threads} thread(s) per task"


def _cpu_info() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def versions() -> dict[str, str]:
    """Return the versions of the software that results depend on."""
    names = ("torch", "torchvision", "prefect", "mlflow", "numpy")
    ours = {"python": platform.python_version(), "cudd": software_version()}
    return ours | {name: importlib.metadata.version(name) for name in names}
