"""Evaluate a finished set with other networks or more seeds: an earlier run's and its baselines, or a folder's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from cudd_core.errors import ConfigError
from flows.beginning import NoSuchRunError, check_same_set, check_unchanged, distilled_none, read_beginning
from flows.cancel import keep_cancelled
from flows.distill import RUNNER, main_job
from flows.imported import evaluate_foreign_set, open_foreign_set
from flows.recipe import Recipe
from flows.results import IMPORTED
from flows.summary import RECIPE_COPY
from tasks.addresses import SUMMARY_FILE
from tasks.store import Store


@flow(name="evaluate", flow_run_name="evaluate {run}", task_runner=RUNNER, on_failure=[keep_cancelled])
def evaluate(
    run: str,
    archs: list[str] = [],  # noqa: B006
    seeds: Annotated[int | None, Field(ge=1, le=100)] = None,
    recipe: str = "",
    overrides: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """Train fresh networks on a distilled set and its baselines. Whatever the run has made is reused by its keys.

    Args:
        run: MLflow run id of a distillation, its folder, or the folder of a set.
        archs: Architectures. Empty: the run's.
        seeds: Fresh networks per architecture. Empty: the run's.
        recipe: For the folder of a set: the recipe that gives teacher, data and training.
        overrides: Changes to that recipe, one key=value each.
    """

    def changed(chosen: Recipe) -> Recipe:
        evaluation = chosen.evaluation.model_copy(
            update={"seeds": seeds or chosen.evaluation.seeds, "archs": tuple(archs) or chosen.evaluation.archs}
        )
        return chosen.model_copy(update={"evaluation": evaluation})

    if is_set(run):
        foreign = open_foreign_set(Path(run).expanduser().resolve(), recipe, overrides)
        return evaluate_foreign_set(replace(foreign, recipe=changed(foreign.recipe)))
    if recipe or overrides:
        raise ConfigError(
            "--recipe and --set are for the folder of a set. A run has its own recipe: repeat its `cudd distill` with "
            "--set evaluation.…, which finds the images again."
        )
    return main_job(changed(recipe_of_run(run)), job="evaluate")


def is_set(run: str) -> bool:
    """Whether `run` is the folder of a set, rather than a run's id or the folder with its summary."""
    folder = Path(run).expanduser()
    return folder.is_dir() and not (folder / SUMMARY_FILE).is_file()


def recipe_of_run(run: str) -> Recipe:
    """Return the recipe that a run was made with, from its MLflow run, finished or not.

    `run` may also be a folder whose summary names the run. Nothing else is taken from it: it may be somebody else's,
    whose recipe must not choose what is read, or downloaded to where, on this machine.

    Raises:
        ConfigError: no such run, no recipe in it, or one that would come to another set by now.
    """
    folder = Path(run).expanduser()
    imported = False
    if folder.is_dir():
        try:
            summary = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
            run, imported = str(summary["mlflow_run_id"]), IMPORTED in summary
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{folder} holds no {SUMMARY_FILE} of a finished run ({error}). Give such a folder, or the run's id."
            ) from error
    store = Store.from_environment()
    try:
        beginning = read_beginning(run, store)
    except NoSuchRunError as error:
        if imported:
            raise distilled_none(run) from None
        if not folder.is_dir():
            raise
        raise ConfigError(
            f"{error} {folder / SUMMARY_FILE} names it: set CUDD_HOME or MLFLOW_TRACKING_URI to the store that has it. "
            f"Or read its recipe and, if you trust it, distil the set anew: `cudd distill {folder / RECIPE_COPY}`."
        ) from error
    check_unchanged(beginning, run)
    check_same_set(beginning, run, store)
    return beginning.recipe
