"""One pipeline run: its MLflow runs, its stages' futures, its clock."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefect import Task
from prefect.artifacts import create_table_artifact
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture

from cudd_core.errors import ArtifactDamaged, Cancelled, CuddError, UserError
from tasks.refs import Ref
from tasks.stage import StageContext
from tasks.store import RUNS_EXPERIMENT, Status

STOPPED = (Cancelled, KeyboardInterrupt, SystemExit, TerminationSignal, asyncio.CancelledError)
"""What ends a run because somebody asked for it."""

_MENDINGS = 5
"""How often a run goes through its stages again because an input turned out damaged."""

_log = logging.getLogger("cudd.run")


class StagesFailed(CuddError):
    """Some tasks of a stage failed; the others finished and are stored."""


@dataclass(frozen=True)
class Submitted:
    """A task on its way, and its name as Prefect shows it."""

    name: str
    future: PrefectFuture[Any]


@dataclass
class Round:
    """One curriculum, or one baseline: its MLflow run, what was gathered for it and how long that was waited for."""

    name: str
    mlflow_run: str
    refs: list[Ref] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class PipelineRun:
    """Collects references, counts and seconds while the flow submits tasks."""

    context: StageContext
    reused: int = 0
    computed: int = 0
    mended: int = 0
    rounds: list[Round] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def round(self, name: str, params: dict[str, Any]) -> Iterator[Round]:
        """Open a nested MLflow run; tasks gathered inside are linked to it and timed for it."""
        store = self.context.store
        tags = {"cudd.round": name}
        current = Round(name, store.start_run(RUNS_EXPERIMENT, name, tags, params, parent=self.context.pipeline_run))
        self.rounds.append(current)
        status: Status = "FAILED"
        try:
            yield current
            status = "FINISHED"
        except STOPPED:
            status = "KILLED"
            raise
        finally:
            store.log_metrics(current.mlflow_run, [(f"seconds_{k}", v, 0) for k, v in current.seconds.items()])
            store.finish_run(current.mlflow_run, status)

    def submit(self, task: Task[..., Any], *arguments: Any) -> Submitted:
        """Hand a stage's task to Prefect. It gets this run's context as its first argument."""
        return Submitted(task_name(task, self.context, *arguments), task.submit(self.context, *arguments))

    def gather(self, stage: str, tasks: Sequence[Submitted], current: Round | None = None) -> tuple[Ref, ...]:
        """Wait for all tasks of a stage and return their references in order of submission.

        A failing task does not stop the others: they finish and are stored, and only then this raises.

        Raises:
            UserError: the first mistake of the user's that a task found.
            ArtifactDamaged: an input was damaged and has been withdrawn; see `start_over`.
            StagesFailed: other failures, as a list of what is missing; also a table among the run's artifacts.
        """
        started = time.monotonic()
        refs: list[Ref] = []
        failures: list[tuple[str, BaseException]] = []
        for each in tasks:
            each.future.wait()
            state = each.future.state
            if state.is_completed():
                refs.append(each.future.result())
                self.reused += state.name == "Reused"
                self.computed += state.name != "Reused"
            else:
                failures.append((each.name, _cause(each.future)))
        elapsed = time.monotonic() - started
        self.seconds[stage] += elapsed
        if current is not None:
            current.seconds[stage] += elapsed
            current.refs += refs
        self._link(refs, current)
        if failures:
            _raise(stage, failures, len(tasks), current)
        return tuple(refs)

    def start_over(self, damage: ArtifactDamaged) -> None:
        """Forget what was counted, to go through all stages again; what was forced has been made already.

        Raises:
            ArtifactDamaged: `damage`, where going through again has not helped before.
        """
        self.mended += 1
        if self.mended > _MENDINGS:
            raise damage
        _log.warning("a stored output was damaged; its stage runs again: %s", damage)
        self.context = dataclasses.replace(self.context, force=frozenset())
        self.reused = self.computed = 0
        self.rounds.clear()

    def _link(self, refs: Iterable[Ref], current: Round | None) -> None:
        unique = tuple({ref.key: ref for ref in refs}.values())
        if unique:
            self.context.store.link_stage(current.mlflow_run if current else self.context.pipeline_run, *unique)


def task_name(task: Task[..., Any], *arguments: Any) -> str:
    """Return a task run's name before there is one."""
    template = task.task_run_name
    if not isinstance(template, str):
        return task.name
    return template.format(**inspect.signature(task.fn).bind(*arguments).arguments)


def _cause(future: PrefectFuture[Any]) -> BaseException:
    found: Any = future.result(raise_on_failure=False)
    return found if isinstance(found, BaseException) else CuddError(str(future.state.message))


def _raise(stage: str, failures: list[tuple[str, BaseException]], total: int, current: Round | None) -> None:
    for kind in (Cancelled, UserError, ArtifactDamaged):
        for _, error in failures:
            if isinstance(error, kind):
                raise error
    place = f" of {current.name}" if current else ""
    rows = [{"part of the run": current.name if current else "", "stage": stage} for _ in failures]
    for row, (name, error) in zip(rows, failures, strict=True):
        row |= {"missing": name, "why": f"{type(error).__name__}: {error}"}
    create_table_artifact(table=rows, key="missing", description=f"What {stage}{place} could not make")
    lines = "\n".join(f"  {name}: {type(error).__name__}: {error}" for name, error in failures[:20])
    more = f"\n  … and {len(failures) - 20} more" if len(failures) > 20 else ""
    raise StagesFailed(
        f"{len(failures)} of {total} {stage} tasks{place} failed; what the others made is stored, and running the "
        f"same command again does only what is missing:\n{lines}{more}"
    ) from failures[0][1]
