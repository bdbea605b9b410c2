"""A walk through a run that computes nothing: what is stored of it, under which names, and what is missing.

It goes through `flows.distill.pipeline` itself, so it cannot differ from what a run would do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefect import Task

from cudd_core.errors import ConfigError
from flows.distill import pipeline
from flows.prepare import RECIPE_FILE
from flows.recipes import Recipe, stored_recipe
from flows.run import Mine, PipelineRun, Round, Submitted, Theirs
from flows.summary import illustrate
from tasks.ledger import Attempt, Ledger
from tasks.refs import Ref
from tasks.stage import DataRef, StageContext
from tasks.store import Store

IMPORTED = "imported"
"""Key of a run's recipe.json that says that its set came from a folder."""


@dataclass(frozen=True)
class Part:
    """One task of a run, as the store knows it.

    `group`: `curriculum 2`, `random 1`, or nothing for what belongs to the whole run. `standing`: `stored`, `running`,
    `failed` or `missing`. `name` is unique within a run: group/stage/task.
    """

    group: str
    stage: str
    title: str
    standing: str
    ref: Ref
    attempt: Attempt | None

    @property
    def name(self) -> str:
        """What `cudd fetch` calls it, for example `curriculum-1/synthesize/slices-0-4-classes-0-9`."""
        own = self.title.removeprefix(self.stage).removeprefix(self.stage.replace("_", " "))
        words = [self.group, self.stage, own]
        return "/".join(_slug(word) for word in words if _slug(word))


@dataclass
class Walk(PipelineRun):
    """Stands in for a `PipelineRun`: tasks are called here and now, and only look their keys up."""

    parts: list[Part] = field(default_factory=list)

    @contextmanager
    def round(self, name: str, params: dict[str, Any]) -> Iterator[Round]:
        """Name what is gathered inside."""
        yield Round(name, "")

    def submit(self, task: Task[..., Any], *arguments: Any) -> Submitted:
        """Call the task."""
        return Submitted(task.name, _Done(task.fn(self.context, *arguments)))  # type: ignore[arg-type]

    def beside(
        self, first: Callable[[PipelineRun], Mine], second: Callable[[PipelineRun], Theirs]
    ) -> tuple[Mine, Theirs]:
        """Go through one after the other."""
        return first(self), second(self)

    def gather(self, stage: str, tasks: Sequence[Submitted], current: Round | None = None) -> tuple[Ref, ...]:
        """Note how the tasks stand and return their references."""
        refs = []
        for each in tasks:
            state = each.future.state
            ref: Ref = state.data  # type: ignore[assignment]
            attempt = None
            if (ledger := self.context.ledger) is not None:
                attempt = ledger.stored.get(ref.key) or ledger.open.get(ref.key)
            group = current.name if current else ""
            self.parts.append(Part(group, ref.stage, str(state.message), str(state.name), ref, attempt))
            refs.append(ref)
        return tuple(refs)


@dataclass(frozen=True)
class _Done:
    state: Any


@dataclass(frozen=True)
class Beginning:
    """What a pipeline run left when it began, enough to follow it without its data and its teachers' files.

    `weights`: the digests of these files by their place.
    """

    recipe: Recipe
    data: DataRef
    weights: Mapping[str, str] = field(default_factory=dict)

    def walk(self, store: Store, ledger: Ledger | None = None) -> Walk:
        """Return a walk that is about to begin; the store is read once."""
        found = ledger if ledger is not None else store.ledger()
        context = StageContext(
            store, self.data, self.recipe.compute, self.recipe.seed, "", ledger=found, weights=self.weights
        )
        return Walk(context)

    def parts(self, store: Store) -> tuple[Part, ...]:
        """Return all tasks of the run and how they stand in the store.

        Tasks that several parts of a run share, such as labels of one set for equal trainings, occur once.
        """
        walked = self.walk(store)
        illustrate(walked, self.recipe, pipeline(walked, self.recipe))
        unique: dict[str, Part] = {}
        for part in walked.parts:
            unique.setdefault(part.ref.key, part)
        return tuple(unique.values())


def walk_run(run: str, store: Store) -> tuple[Recipe, tuple[Part, ...]]:
    """Return the recipe of a pipeline run and how its tasks stand now. Raises as `read_beginning`."""
    beginning = read_beginning(run, store)
    return beginning.recipe, beginning.parts(store)


def read_beginning(run: str, store: Store) -> Beginning:
    """Return what a pipeline run left when it began.

    Raises:
        StoreError: no such run.
        ConfigError: a run whose set came from a folder, whose recipe is not that of a distillation, or a recipe of
            another version.
    """
    found = json.loads(store.read_text(run, RECIPE_FILE))
    if IMPORTED in found:
        raise ConfigError(
            f"Run {run} evaluated a set from a folder and distilled none. Give that folder, or another run."
        )
    recipe = stored_recipe(found["config"], f"run {run}")
    return Beginning(recipe, DataRef(recipe.data, **found["data"]), found.get("weights", {}))


def made_by(part: Part, run: str) -> bool:
    """Whether that pipeline run computed the part itself."""
    return part.attempt is not None and part.attempt.pipeline_run == run


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "_." else " " for c in text)
    return "-".join(kept.split())
