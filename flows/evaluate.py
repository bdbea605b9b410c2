"""Evaluate the set of an earlier run on other architectures or more seeds, beside the same baselines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field, ValidationError

from cudd_core.errors import ConfigError
from flows.distill import RUNNER, main_job
from flows.prepare import RECIPE_FILE
from flows.recipes import Recipe
from tasks.store import Store


@flow(name="evaluate", flow_run_name="evaluate {run}", task_runner=RUNNER)
def evaluate(
    run: Annotated[str, Field(description="MLflow run id of a distillation, or a folder with its summary.json.")],
    archs: Annotated[list[str], Field(description="Architectures; empty: the run's own.")] = [],  # noqa: B006
    seeds: Annotated[int, Field(description="Fresh networks per architecture.", ge=1, le=100)] = 3,
) -> dict[str, Any]:
    """Train fresh networks on a distilled set and its baselines. What the run has made is reused by its keys."""
    recipe = recipe_of_run(run)
    evaluation = recipe.evaluation.model_copy(update={"seeds": seeds, "archs": tuple(archs) or recipe.evaluation.archs})
    return main_job(recipe.model_copy(update={"evaluation": evaluation}), job="evaluate")


def recipe_of_run(run: str) -> Recipe:
    """Return the recipe that a run was made with: from its MLflow run, finished or not, or from a folder's summary.

    Raises:
        ConfigError: no such run, or no recipe in it.
    """
    folder = Path(run).expanduser()
    if folder.is_dir():
        file = folder / "summary.json"
        if not file.is_file():
            raise ConfigError(f"{folder} has no summary.json. Give the folder of a finished run, or its MLflow run id.")
        text = file.read_text(encoding="utf-8")
    else:
        text = Store.from_environment().read_text(run, RECIPE_FILE)
    try:
        return Recipe.model_validate(json.loads(text)["config"])
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"The recipe of {run} cannot be read: {error}") from error
