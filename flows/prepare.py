"""What comes before the first stage and after the last: checks, the store, the pipeline's MLflow run, its status."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run

from cudd_core.data.decoded import leave_room
from flows.cancel import stop_when_cancelled
from flows.checks import check_data, check_recipe
from flows.memory import check_memory
from flows.recipe import Recipe
from flows.recipes import changes_of, flat
from flows.results import Stages
from flows.run import PipelineRun, ended
from flows.servers import mlflow_pages, mlflow_run_page
from flows.space import check_space
from flows.walk import begin_walk
from tasks.addresses import home_folder
from tasks.context import DataRef, StageContext
from tasks.pages import show
from tasks.progress import stop_requested
from tasks.remote import ray_session
from tasks.runners import LOCAL
from tasks.squeeze import file_digest
from tasks.store import Store

_log = logging.getLogger("cudd.prepare")

RECIPE_FILE = "recipe.json"
"""Artifact that every pipeline run has from its start: the complete recipe, digests of data and teachers' files."""


CHANGES_TAG = "cudd.changes"
"""Tag that says how a run's recipe differs from the named one, as `--set` takes it."""


@contextmanager
def opened_run(
    recipe: Recipe,
    stages: Stages,
    force: frozenset[str] = frozenset(),
    runner: str = LOCAL,
    job: str = "distill",
    parent: str | None = None,
    beginning: Mapping[str, object] = MappingProxyType({}),
    labelled: int = 1,
) -> Iterator[PipelineRun]:
    """Check the recipe, open the store, Ray and the pipeline's MLflow run, and end that run with the fitting status.

    `stages`: what the run will go through. `parent`: the MLflow run that it is nested under. `beginning`: further
    entries of recipe.json, for a run that distils nothing. `labelled`: how many times, at most, its sets are labelled.
    Running stages are told to stop when this is left, for whatever reason, and when the flow run, or the one that
    started it, is cancelled.

    Raises:
        UserError: a check failed; nothing has been stored.
        StoreError: the store cannot be reached.
    """
    stop_requested.clear()
    # Prefect attaches its handlers to this logger but does not set its level; progress is logged at INFO.
    logging.getLogger("cudd").setLevel(logging.INFO)
    check_recipe(recipe, force, runner)
    # Listing millions of files takes minutes.
    _log.info("checking the data: %s", recipe.data.root or recipe.data.source)
    data = check_data(recipe, distils=not beginning)
    weights = {each.weights: file_digest(each) for each in recipe.teachers if each.source == "file"}
    store = Store.from_environment().connect()
    if runner == LOCAL:
        check_memory(recipe, data.num_classes, partial(stages_ahead, recipe, data, store, stages, force))
    leave_room(store.output_folder, check_space(recipe, data, store, stages, force, labelled))
    store.pipelines.end_dead()
    with ray_session(runner, recipe.compute), stop_when_cancelled(flow_run.get_root_flow_run_id()):
        tags = {"cudd.recipe": recipe.name, "cudd.prefect_flow_run": str(flow_run.get_id() or "")}
        if changes := changes_of(recipe):
            tags[CHANGES_TAG] = " ".join(changes)
        params = flat(recipe.model_dump(mode="json", exclude={"description"}))
        run_id = store.pipelines.start(f"{job} {recipe.name}", tags, params, parent=parent)
        _log.info("run %s: %s %s", run_id, job, recipe.name)
        with ended(store, run_id):
            try:
                log_recipe(store, run_id, recipe, data, weights, beginning)
                link_in_prefect(store, run_id)
                context = StageContext(
                    store, data, recipe.compute, recipe.seed, run_id, force, runner=runner, weights=weights
                )
                yield PipelineRun(context)
            finally:
                stop_requested.set()


def stages_ahead(
    recipe: Recipe, data: DataRef, store: Store, stages: Stages, force: frozenset[str] = frozenset()
) -> set[str]:
    """Return the names of the stages of which a run has something left to compute. Reads the store.

    `stages`: what the run goes through. `force`: stages that are made again, whatever is stored of them.
    """
    walked = begin_walk(recipe, data, store)
    stages(walked)
    return {part.stage for part in walked.parts if part.standing != "stored" or part.stage in force}


def log_recipe(
    store: Store,
    run_id: str,
    recipe: Recipe,
    data: DataRef,
    weights: Mapping[str, str],
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Store what `status`, `fetch` and `export` need to walk through a run, finished or not, without data and files."""
    digests = {"train": data.train, "test": data.test, "num_classes": data.num_classes}
    left = {"config": recipe.model_dump(mode="json"), "data": digests, "weights": dict(weights), **more}
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(left, indent=2)
        (Path(folder) / RECIPE_FILE).write_text(text, encoding="utf-8")
        store.pipelines.log_files(run_id, Path(folder))


def link_in_prefect(store: Store, run_id: str) -> None:
    """Leave a link to the MLflow run among the flow run's artifacts, if there are pages to link to."""
    pages = mlflow_pages(home_folder())
    if pages is not None:
        link = mlflow_run_page(pages, store.pipelines.experiment_of(run_id), run_id)
        words = "This run in MLflow"
        description = f"{words}: curves, pictures, outputs, the report"
        show(create_link_artifact, link=link, link_text=words, description=description)
