"""A walk through a run that computes nothing: what is stored of it, under which names, and what is missing.

It is passed to `flows.distill.pipeline` itself in place of a run, so it cannot differ from what a run would do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flows.recipe import Recipe
from flows.run import Given, Mine, PipelineRun, Round, StageTask, Submitted, Theirs
from tasks.context import DataRef, StageContext
from tasks.ledger import Attempt, Ledger
from tasks.refs import Ref
from tasks.store import Store


@dataclass(frozen=True)
class Part:
    """One task of a run, and its state in the store.

    `group`: such as `curriculum 2` or `random 1`; empty for tasks of the whole run. `standing`: `stored`, `running`,
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
        """The name that `cudd fetch` uses, for example `curriculum-1/synthesize/slices-0-4-classes-0-9`."""
        own = self.title.removeprefix(self.stage).removeprefix(self.stage.replace("_", " "))
        words = [self.group, self.stage, own]
        return "/".join(_slug(word) for word in words if _slug(word))


@dataclass
class Walk(PipelineRun):
    """Stands in for a `PipelineRun`: tasks are called at once, and only look up their keys."""

    parts: list[Part] = field(default_factory=list)

    @contextmanager
    def round(self, name: str, params: dict[str, Any]) -> Iterator[Round]:
        """Yield a round that only names what is gathered inside."""
        yield Round(name, "")

    def submit(self, task: StageTask[Given], *arguments: Given.args, **named: Given.kwargs) -> Submitted:
        """Call the task."""
        return Submitted(task.name, _Done(task.fn(self.context, *arguments, **named)))  # type: ignore[arg-type]

    def beside(
        self, first: Callable[[PipelineRun], Mine], second: Callable[[PipelineRun], Theirs]
    ) -> tuple[Mine, Theirs]:
        """Go through one branch after the other."""
        return first(self), second(self)

    def gather(self, stage: str, tasks: Sequence[Submitted], current: Round | None = None) -> tuple[Ref, ...]:
        """Note the state of the tasks and return their references."""
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


def begin_walk(
    recipe: Recipe, data: DataRef, store: Store, ledger: Ledger | None = None, weights: Mapping[str, str] | None = None
) -> Walk:
    """Return a walk that is ready to begin; the store is read once, unless `ledger` is given.

    `weights`: path of a teacher's file → its digest; a file that is not listed is read.
    """
    found = ledger if ledger is not None else store.ledger()
    return Walk(StageContext(store, data, recipe.compute, recipe.seed, "", ledger=found, weights=weights or {}))


def made_by(part: Part, run: str) -> bool:
    """Whether that pipeline run computed the part itself."""
    return part.attempt is not None and part.attempt.pipeline_run == run


def _slug(text: str) -> str:
    kept = "".join(c if c.isalnum() or c in "_." else " " for c in text)
    return "-".join(kept.split())
