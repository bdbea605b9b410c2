"""One pipeline run: its MLflow runs, its stages' futures, its clock."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from prefect import Task
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.tasks import TaskRunNameCallbackWithParameters
from prefect.utilities.annotations import quote

from cudd_core.errors import ArtifactDamaged, Cancelled, CuddError, UserError
from tasks.context import StageContext
from tasks.pages import show
from tasks.pipeline_runs import ROUND_TAG
from tasks.progress import stop_requested
from tasks.refs import Ref
from tasks.slots import tasks_in_flight
from tasks.store import Store

Mine = TypeVar("Mine")
Theirs = TypeVar("Theirs")
Given = ParamSpec("Given")

StageTask = Task[Concatenate[StageContext, Given], State[Ref]]
"""A stage as a Prefect task: it takes the run's context first and returns a reference to the stored output."""

STOPPED = (KeyboardInterrupt, SystemExit, TerminationSignal, asyncio.CancelledError, Cancelled)
"""Errors that end a run because somebody asked for it: those of a signal, and the one that stopped tasks raise."""

_MENDINGS = 5
"""How many times a run may go through its stages again because an input turned out to be damaged."""

_DRAWN = 50
"""The most references in one argument that Prefect notes as the task's inputs, and draws as lines to it."""

_TOLD_SECONDS = 60.0
"""Lines that say how many of a stage's tasks are done are at least this far apart."""

_log = logging.getLogger("cudd.run")


class StagesFailed(CuddError):
    """Some tasks of a stage failed; the others finished and are stored."""


@dataclass(frozen=True)
class Submitted:
    """A submitted task, and its name as Prefect shows it."""

    name: str
    future: PrefectFuture[Any]


@dataclass
class Round:
    """One round of a run: a curriculum of CUDD or of a baseline, or an imported set.

    `refs`: what was gathered for it. `seconds`: stage → time spent waiting for its tasks.
    """

    name: str
    mlflow_run: str
    refs: list[Ref] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class Tally:
    """Counts of a run, over all its branches.

    `made`: keys that it computed. `waits`: stage → intervals during which it was waited for.
    """

    reused: int = 0
    made: list[str] = field(default_factory=list)
    mended: int = 0
    rounds: list[Round] = field(default_factory=list)
    waits: defaultdict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def computed(self) -> int:
        """How many tasks computed something."""
        return len(self.made)

    def add(self, stage: str, wait: tuple[float, float], reused: int, made: list[str]) -> None:
        """Count the gathered tasks of a stage."""
        with self.lock:
            self.waits[stage].append(wait)
            self.reused += reused
            self.made += made


@dataclass
class PipelineRun:
    """Collects references, counts and seconds while the flow submits tasks.

    `room`: limits how many tasks a branch that runs beside another has in flight; None: no limit.
    """

    context: StageContext
    tally: Tally = field(default_factory=Tally)
    room: threading.Semaphore | None = None

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds spent waiting for each stage; time in which two branches waited for it counts once."""
        return {stage: _covered(waits) for stage, waits in self.tally.waits.items()}

    @contextmanager
    def round(self, name: str, params: dict[str, Any]) -> Iterator[Round]:
        """Open a nested MLflow run; tasks gathered inside are linked to it and timed for it."""
        store = self.context.store
        tags = {ROUND_TAG: name}
        current = Round(name, store.pipelines.start(name, tags, params, parent=self.context.pipeline_run))
        self.tally.rounds.append(current)
        with ended(store, current.mlflow_run):
            try:
                yield current
            finally:
                seconds = [(f"seconds_{stage}", wait, 0) for stage, wait in current.seconds.items()]
                with contextlib.suppress(CuddError):  # a store that is away must not hide why the round ended
                    store.pipelines.log_metrics(current.mlflow_run, seconds)

    def submit(self, task: StageTask[Given], *arguments: Given.args, **named: Given.kwargs) -> Submitted:
        """Hand a stage's task to Prefect. It gets this run's context as its first argument."""
        name = task_name(task, self.context, *arguments, **named)
        submit = partial(task.submit, self.context, *map(_drawn, arguments), **named)
        if self.room is None:
            return Submitted(name, submit())
        room = self.room
        room.acquire()
        try:
            future = submit()
        except BaseException:
            room.release()
            raise
        future.add_done_callback(lambda _: room.release())
        return Submitted(name, future)

    def beside(
        self, first: Callable[[PipelineRun], Mine], second: Callable[[PipelineRun], Theirs]
    ) -> tuple[Mine, Theirs]:
        """Go through two independent branches at the same time, and return their results.

        The first branch has priority on the devices; the second uses what is left over. If one fails, the other still
        finishes and is stored, as the tasks of a stage do, unless the failure is the user's mistake or a stop, which
        end both.

        Raises:
            Whatever a branch raises; if both fail, preferably a user's mistake, then a stop, then a damaged input.
        """
        patient = dataclasses.replace(
            self,
            context=dataclasses.replace(self.context, patient=True),
            # Half of the flow's threads are kept for the first branch, however many blocks the second one has.
            room=threading.Semaphore(tasks_in_flight() // 2),
        )
        with ThreadPoolExecutor(1, thread_name_prefix="cudd-beside") as thread:
            other = thread.submit(copy_context().run, _through, second, patient)
            try:
                mine = _through(first, self)
                return mine, other.result()
            except BaseException as error:
                if isinstance(error, STOPPED):
                    stop_requested.set()
                theirs = other.exception()
                errors = [error] if theirs is None or theirs is error else [error, theirs]
        # Not inside `except`, where raising "from" anything would replace the error's own cause.
        raise _gravest(errors)

    def gather(self, stage: str, tasks: Sequence[Submitted], current: Round | None = None) -> tuple[Ref, ...]:
        """Wait for all tasks of a stage and return their references in order of submission.

        A failing task does not stop the others: they finish and are stored, and only then this raises.

        Raises:
            Cancelled: the run was stopped.
            UserError: the first mistake by the user that a task found.
            ArtifactDamaged: an input was damaged and has been withdrawn; see `start_over`.
            StagesFailed: other failures, as a list of what is missing; also a table among the run's artifacts.
        """
        started = told = time.monotonic()
        refs: list[Ref] = []
        made: list[str] = []
        failures: list[tuple[str, BaseException]] = []
        for number, each in enumerate(tasks):
            # Tasks that are found in the store say nothing themselves, and there may be thousands of them.
            if (now := time.monotonic()) - told >= _TOLD_SECONDS:
                told, whose = now, f" of {current.name}" if current else ""
                found = len(refs) - len(made)
                _log.info(
                    "%s%s: %d of %d tasks are done, %d found in the store", stage, whose, number, len(tasks), found
                )
            each.future.wait()
            state = each.future.state
            if state.is_completed():
                refs.append(each.future.result())
                # What this run made before it noticed a damaged input is now found in the store, but is still its work.
                if state.name != "Reused" or refs[-1].key in self.context.remade:
                    made.append(refs[-1].key)
            else:
                failures.append((each.name, _cause(each.future)))
        ended = time.monotonic()
        self.tally.add(stage, (started, ended), len(refs) - len(made), made)
        if current is not None:
            current.seconds[stage] += ended - started
            current.refs += refs
        self._link(refs, current)
        if failures:
            _raise(stage, failures, len(tasks), current)
        return tuple(refs)

    def start_over(self, damage: ArtifactDamaged) -> None:
        """Reset the counts in order to go through all stages again; forced outputs made already are not made again.

        Raises:
            ArtifactDamaged: `damage`, if that has not helped `_MENDINGS` times before.
        """
        mended = self.tally.mended + 1
        if mended > _MENDINGS:
            raise damage
        _log.warning("a stored output was damaged; its stage runs again: %s", damage)
        self.context = dataclasses.replace(self.context, remade=self.context.remade | frozenset(self.tally.made))
        self.tally = Tally(mended=mended, waits=self.tally.waits)

    def _link(self, refs: Iterable[Ref], current: Round | None) -> None:
        unique = tuple({ref.key: ref for ref in refs}.values())
        if unique:
            self.context.store.pipelines.link(current.mlflow_run if current else self.context.pipeline_run, *unique)


@contextmanager
def ended(store: Store, run_id: str) -> Iterator[None]:
    """End an MLflow run according to what happened inside: FINISHED, KILLED if somebody stopped it, else FAILED."""
    try:
        yield
    except BaseException as error:
        # An error of the store while ending the run must not hide the reason for its end.
        with contextlib.suppress(CuddError):
            store.pipelines.finish(run_id, "KILLED" if isinstance(error, STOPPED) else "FAILED")
        raise
    store.pipelines.finish(run_id, "FINISHED")


def _drawn(argument: Any) -> Any:
    """Return a task's argument, wrapped if it has too many references for Prefect to note; the task gets them anyway.

    All labels of all epochs read all shards of a set. For ImageNet-21K that is millions of lines, each of which
    Prefect's page of the run asks for as often as the task at its beginning has inputs: its server would need tens of
    gigabytes and many minutes.
    """
    return quote(argument) if isinstance(argument, tuple) and len(argument) > _DRAWN else argument


def task_name(task: Task[..., Any], *arguments: Any, **named: Any) -> str:
    """Return the name that a task run will have."""
    given = dict(inspect.signature(task.fn).bind(*arguments, **named).arguments)
    return cast(TaskRunNameCallbackWithParameters, task.task_run_name)(given)  # made by stage_task


def _through(branch: Callable[[PipelineRun], Mine], run: PipelineRun) -> Mine:
    """Go through a branch; if it fails, stop the run or log the error at once."""
    try:
        return branch(run)
    except (UserError, *STOPPED):
        stop_requested.set()
        raise
    except ArtifactDamaged:
        raise
    except Exception as error:
        _log.error("this run will fail at its end; what its other branch makes is stored:\n%s", error)
        raise


def _gravest(errors: Sequence[BaseException]) -> BaseException:
    """Return the error that a run ends with if these errors ended its branches."""
    if (found := _first_of(errors, UserError, *STOPPED, ArtifactDamaged)) is not None:
        return found
    if len(errors) > 1 and all(isinstance(error, StagesFailed) for error in errors):
        together = StagesFailed("\n".join(str(error) for error in errors))
        together.__cause__ = errors[0].__cause__
        return together
    return errors[0]


def _first_of(errors: Sequence[BaseException], *kinds: type[BaseException]) -> BaseException | None:
    """Return the first error of the first kind that occurs among them; None if none does."""
    return next((error for kind in kinds for error in errors if isinstance(error, kind)), None)


def _covered(waits: Sequence[tuple[float, float]]) -> float:
    """Return the length of a union of intervals."""
    total, last = 0.0, -float("inf")
    for start, end in sorted(waits):
        total += max(0.0, end - max(start, last))
        last = max(last, end)
    return total


def _cause(future: PrefectFuture[Any]) -> BaseException:
    found: Any = future.result(raise_on_failure=False)
    return found if isinstance(found, BaseException) else CuddError(str(future.state.message))


def _raise(stage: str, failures: list[tuple[str, BaseException]], total: int, current: Round | None) -> None:
    found = _first_of([error for _, error in failures], Cancelled, UserError, ArtifactDamaged)
    if found is not None:
        raise found
    place = f" of {current.name}" if current else ""
    part = current.name if current else ""
    rows = [
        {"part of the run": part, "stage": stage, "missing": name, "why": f"{type(error).__name__}: {error}"}
        for name, error in failures
    ]
    show(create_table_artifact, table=rows, key="missing", description=f"What {stage}{place} could not make")
    lines = "\n".join(f"  {name}: {type(error).__name__}: {error}" for name, error in failures[:20])
    more = f"\n  … and {len(failures) - 20} more" if len(failures) > 20 else ""
    raise StagesFailed(
        f"{len(failures)} of {total} {stage} tasks{place} failed; what the others made is stored, and running the "
        f"same command again does only what is missing and what it forces:\n{lines}{more}"
    ) from failures[0][1]
