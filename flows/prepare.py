"""Before the first stage and after the last: checks, the store, the pipeline's MLflow run, its status."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.runtime import flow_run

from flows.checks import check_data, check_recipe, check_space
from flows.recipes import Recipe
from flows.run import STOPPED, PipelineRun
from tasks.progress import stop_requested
from tasks.stage import StageContext
from tasks.store import RUNS_EXPERIMENT, Status, Store


@contextmanager
def opened_run(recipe: Recipe, force: frozenset[str] = frozenset()) -> Iterator[PipelineRun]:
    """Check the recipe, open the store and the pipeline's MLflow run, and end that run with what happened.

    On the way out, however it is left, running stages are told to stop.

    Raises:
        UserError: before anything is stored.
        StoreError: the store cannot be reached.
    """
    stop_requested.clear()
    # Prefect attaches its handlers to this logger but leaves its level; progress is on INFO.
    logging.getLogger("cudd").setLevel(logging.INFO)
    check_recipe(recipe, force)
    data = check_data(recipe)
    store = Store.from_environment().connect()
    check_space(recipe, data, store.cache_folder)
    tags = {"cudd.recipe": recipe.name, "cudd.prefect_flow_run": str(flow_run.get_id() or "")}
    params = flat(recipe.model_dump(mode="json", exclude={"description"}))
    run_id = store.start_run(RUNS_EXPERIMENT, f"distill {recipe.name}", tags, params)
    run = PipelineRun(StageContext(store, data, recipe.compute, recipe.seed, run_id, force))
    status: Status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except STOPPED:
        status = "KILLED"
        raise
    finally:
        stop_requested.set()
        store.finish_run(run_id, status)


def flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested values under dotted names, as `--set` takes them."""
    rows: dict[str, object] = {}
    for name, value in values.items():
        rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows
