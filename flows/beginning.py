"""What a pipeline run stored when it began: enough to walk through it again, from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from tasks.ledger import Attempt, Ledger
from tasks.mlflow_calls import Gone
from tasks.pipeline_runs import linked_name
from tasks.refs import Ref
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

    def parts(self, store: Store, ledger: Ledger | None = None) -> tuple[Part, ...]:
        """Return all tasks of the run, with their state in the store.

        Tasks that several parts of a run share, such as one set's labels for equal trainings, appear once.
        """
        walked = self.walk(store, ledger)
        illustrate(walked, self.recipe, pipeline(walked, self.recipe))
        unique: dict[str, Part] = {}
        for part in walked.parts:
            unique.setdefault(part.ref.key, part)
        return tuple(unique.values())


@dataclass(frozen=True)
class Walked:
    """A pipeline run's recipe, and the current state of its tasks.

    `historic`: the same recipe would come to another set now; the tasks are what the run itself used (`own_outputs`).
    """

    recipe: Recipe
    parts: tuple[Part, ...]
    historic: bool


def walk_run(run: str, store: Store) -> Walked:
    """Walk through a pipeline run. Raises like `read_beginning`."""
    beginning, ledger = read_beginning(run, store), store.ledger()
    parts = beginning.parts(store, ledger)
    own = own_outputs(run, store, ledger, parts)
    return Walked(beginning.recipe, own or parts, historic=bool(own))


def own_outputs(run: str, store: Store, ledger: Ledger, parts: Sequence[Part]) -> tuple[Part, ...]:
    """Return what a FINISHED run used, by its links, if its set is not the one that `parts` come to; otherwise nothing.

    It is another one if the run was made with another version of this software, or if a stage was made again since then
    with another result.

    `parts`: those of a walk through the run, in its order.
    """
    if store.pipelines.status_of(run) != "FINISHED":
        return ()  # the links of what was going on when it ended are missing
    links = store.pipelines.links(run)
    outputs = {link.output for link in links.values()}
    stages = {output.partition(".")[0] for output in outputs}
    for part in parts:
        if part.stage in stages and linked_name(part.ref) not in outputs:
            used = [attempt for attempt in ledger.attempts if attempt.run_id in links]
            return tuple(_own_part(links[attempt.run_id].round, attempt) for attempt in used)
        # Keys that are made from missing outputs are not the true ones; what is made of the set does not matter.
        if part.standing != "stored" or part.stage == "assemble":
            break
    return ()


def check_same_set(beginning: Beginning, run: str, store: Store) -> None:
    """Check that a finished run's stages, gone through again, come to the run's own set.

    Raises:
        ConfigError: another set would come out.
    """
    ledger = store.ledger()
    if own_outputs(run, store, ledger, beginning.parts(store, ledger)):
        raise ConfigError(
            f"Run {run} was made with another version of this software, or its stages were made again with another "
            f"result: another set would come out. `cudd export {run} --format hf --to DIR` writes the run's own; give "
            "DIR. Or distil the recipe again."
        )


def _own_part(group: str, attempt: Attempt) -> Part:
    ref = attempt.ref or Ref(attempt.stage, attempt.key, "", attempt.key, 0)
    standing = "stored" if attempt.ref is not None else "missing"
    return Part(group, attempt.stage, attempt.title, standing, ref, attempt)


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
