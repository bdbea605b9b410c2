"""What a pipeline run stored when it began: enough to walk through it again, from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from cudd_core.data import open_split
from cudd_core.errors import ConfigError
from flows.distill import pipeline
from flows.prepare import RECIPE_FILE
from flows.recipe import Recipe
from flows.recipes import stored_recipe
from flows.results import IMPORTED
from flows.summary import illustrate
from flows.walk import Part, Walk, begin_walk
from tasks.context import DataRef
from tasks.ledger import Ledger
from tasks.mlflow_calls import Gone
from tasks.squeeze import file_digest
from tasks.store import Store


@dataclass(frozen=True)
class Beginning:
    """What a pipeline run stored when it began: enough to walk through it without its data and its teachers' files.

    `weights`: path of a teacher's file → its digest.
    """

    recipe: Recipe
    data: DataRef
    weights: Mapping[str, str] = field(default_factory=dict)

    def walk(self, store: Store, ledger: Ledger | None = None) -> Walk:
        """Return a walk that is ready to begin; the store is read once, unless `ledger` is given."""
        return begin_walk(self.recipe, self.data, store, ledger, self.weights)

    def parts(self, store: Store) -> tuple[Part, ...]:
        """Return all tasks of the run, with their state in the store.

        Tasks that several parts of a run share, such as one set's labels for equal trainings, appear once.
        """
        walked = self.walk(store)
        illustrate(walked, self.recipe, pipeline(walked, self.recipe))
        unique: dict[str, Part] = {}
        for part in walked.parts:
            unique.setdefault(part.ref.key, part)
        return tuple(unique.values())


def walk_run(run: str, store: Store) -> tuple[Recipe, tuple[Part, ...]]:
    """Return the recipe of a pipeline run and the current state of its tasks. Raises like `read_beginning`."""
    beginning = read_beginning(run, store)
    return beginning.recipe, beginning.parts(store)


class NoSuchRunError(ConfigError):
    """The store has no pipeline run with that id."""


def check_unchanged(beginning: Beginning, run: str) -> None:
    """Check that data and teachers' files are the same as when the run began; otherwise another set would result.

    Raises:
        ConfigError: they have changed.
    """
    recipe, data = beginning.recipe, beginning.data
    digests = {recipe.data.train_split: data.train, recipe.data.test_split: data.test}
    changed = [
        f"split {split!r} of {recipe.data.root or recipe.data.source}"
        for split, digest in digests.items()
        if open_split(recipe.data, split).digest != digest
    ]
    known = [teacher for teacher in recipe.teachers if teacher.weights in beginning.weights]
    changed += [each.weights for each in known if beginning.weights[each.weights] != file_digest(each)]
    if changed:
        raise ConfigError(
            f"{', '.join(dict.fromkeys(changed))}: not what it was when run {run} began, so another set would come "
            f"out. Bring it back; or `cudd export {run} --format hf --to DIR` and give DIR."
        )


def read_beginning(run: str, store: Store) -> Beginning:
    """Return what a pipeline run stored when it began.

    Raises:
        ConfigError: no such run (`NoSuchRunError`), one whose set came from a folder, or a recipe of another version.
        StoreError: the store cannot be reached.
    """
    try:
        found = json.loads(store.pipelines.read_text(run, RECIPE_FILE))
    except Gone as error:
        raise _not_a_distillation(run, store) from error
    if IMPORTED in found:
        raise distilled_none(run)
    recipe = stored_recipe(found["config"], f"run {run}")
    return Beginning(recipe, DataRef(recipe.data, **found["data"]), found.get("weights", {}))


def distilled_none(run: str) -> ConfigError:
    """Return the error for a run that evaluated a set from a folder."""
    return ConfigError(f"Run {run} evaluated a set from a folder and distilled none. Give that folder, or another run.")


def _not_a_distillation(run: str, store: Store) -> ConfigError:
    """Return the error for a run without a recipe.json."""
    try:
        name = store.pipelines.name_of(run)
    except Gone:
        return NoSuchRunError(f"{store.display_uri} has no run {run!r}. `cudd status` lists the latest.")
    return ConfigError(
        f"Run {run} ({name}) distilled nothing itself, or ended before it began. Of a comparison, name one of the runs "
        "nested in it: their ids are in comparison.md, and MLflow shows them below it (`cudd ui`)."
    )
