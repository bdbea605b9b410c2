"""What the laboratories share: finding a finished run's stages by their keys, publishing findings in both UIs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.runtime import flow_run

from cudd_core.reporting.tables import Table
from flows.distill import pipeline, through
from flows.evaluate import recipe_of_run
from flows.prepare import opened_run
from flows.recipe import Recipe
from flows.results import Results
from flows.run import PipelineRun
from flows.servers import mlflow_file, mlflow_pages
from tasks.addresses import home_folder, results_folder
from tasks.pages import show


@dataclass(frozen=True)
class Findings:
    """What a laboratory found.

    `document`: everything, as JSON. `tables`: name → table for people. `rows`: one row per measurement, for programs.
    `figures`: name → PNG.
    """

    title: str
    document: Mapping[str, Any]
    tables: Mapping[str, Table]
    rows: Table
    figures: Mapping[str, bytes]


Study = Callable[[PipelineRun, Recipe, Results], Findings]


def laboratory(job: str, run: str, change: Callable[[Recipe], Recipe], study: Study) -> dict[str, Any]:
    """Collect a run's stages, computing what is missing, study them, and publish the findings. Call this inside a flow.

    `run`: MLflow run id of a distillation, or the folder with its summary. `change`: run's recipe → recipe to use.

    Raises:
        UserError: no such run, or what `study` refuses.
    """
    recipe = change(recipe_of_run(run))
    stages = partial(pipeline, recipe=recipe)
    with opened_run(recipe, stages, job=job) as opened:
        return through(opened, lambda: publish(opened, job, run, study(opened, recipe, stages(opened))))


def publish(opened: PipelineRun, job: str, source: str, findings: Findings) -> dict[str, Any]:
    """Write JOB.json, JOB.md, JOB.csv and the figures to the home and to MLflow, and show them in Prefect.

    Returns the document, with `files`, the paths of what was written.
    """
    context = opened.context
    folder = results_folder(home_folder(), context.pipeline_run)
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "job": job,
        "source": source,
        "run_id": str(flow_run.get_id() or ""),
        "mlflow_run_id": context.pipeline_run,
        "reused_tasks": opened.tally.reused,
        "computed_tasks": opened.tally.computed,
        **findings.document,
    }
    for name, png in findings.figures.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / f"{job}.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{job}.csv").write_text(findings.rows.csv(), encoding="utf-8")
    (folder / f"{job}.md").write_text(_markdown(findings), encoding="utf-8")
    context.store.pipelines.log_files(context.pipeline_run, folder)
    _show_in_prefect(opened, findings)
    files = sorted(str(file) for file in folder.iterdir() if file.is_file())
    return {**document, "files": files}


def _markdown(findings: Findings) -> str:
    tables = "".join(f"\n**{name}**\n\n{table.markdown()}" for name, table in findings.tables.items())
    return f"# {findings.title}\n{tables}"


def _show_in_prefect(opened: PipelineRun, findings: Findings) -> None:
    show(create_markdown_artifact, markdown=_markdown(findings), description=findings.title)
    for name, table in findings.tables.items():
        show(create_table_artifact, table=table.records(), description=name)
    pages = mlflow_pages(home_folder())
    if pages is not None:
        for name in findings.figures:
            address = mlflow_file(pages, opened.context.pipeline_run, f"{name}.png")
            show(create_image_artifact, image_url=address, description=findings.title)
