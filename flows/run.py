"""One pipeline run: its MLflow runs, its stages' futures, its clock."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture

from cudd_core.errors import Cancelled, CuddError, UserError
from tasks.refs import Ref
from tasks.stage import StageContext
from tasks.store import RUNS_EXPERIMENT, Status

STOPPED = (Cancelled, KeyboardInterrupt, SystemExit, TerminationSignal, asyncio.CancelledError)
"""What ends a run because somebody asked for it."""


class StagesFailed(CuddError):
    """Some tasks of a stage failed; the others finished and are stored."""


@dataclass
class Round:
    """One curriculum, or one baseline: its MLflow run and what it cost."""

    name: str
    mlflow_run: str
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


@dataclass
class PipelineRun:
    """Collects references, counts and seconds while the flow submits tasks."""

    context: StageContext
    rounds: list[Round] = field(default_factory=list)
    reused: int = 0
    computed: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    stored: dict[str, Ref] = field(default_factory=dict)

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

    def gather(
        self, stage: str, futures: Sequence[PrefectFuture[Any]], current: Round | None = None
    ) -> tuple[Ref, ...]:
        """Wait for all tasks of a stage and return their references in order of submission.

        A failing task does not stop the others: they finish and are stored, and only then this raises.

        Raises:
            UserError: the first mistake of the user's that a task found.
            StagesFailed: other failures, as a list of what is missing.
        """
        started = time.monotonic()
        refs: list[Ref] = []
        failures: list[tuple[str, BaseException]] = []
        for future in futures:
            future.wait()
            state = future.state
            if state.is_completed():
                ref = future.result()
                refs.append(ref)
                self.stored[ref.key] = ref
                self.reused += state.name == "Reused"
                self.computed += state.name != "Reused"
            else:
                failures.append((state.name or "failed", _cause(future)))
        elapsed = time.monotonic() - started
        self.seconds[stage] += elapsed
        if current is not None:
            current.seconds[stage] += elapsed
        self._link(refs, current)
        if failures:
            _raise(stage, failures, len(futures))
        return tuple(refs)

    def _link(self, refs: Iterable[Ref], current: Round | None) -> None:
        unique = tuple({ref.key: ref for ref in refs}.values())
        if unique:
            self.context.store.link_stage(current.mlflow_run if current else self.context.pipeline_run, *unique)


def _cause(future: PrefectFuture[Any]) -> BaseException:
    found: Any = future.result(raise_on_failure=False)
    return found if isinstance(found, BaseException) else CuddError(str(future.state.message))


def _raise(stage: str, failures: list[tuple[str, BaseException]], total: int) -> None:
    for _, error in failures:
        if isinstance(error, UserError | Cancelled):
            raise error
    lines = "\n".join(f"  {name}: {type(error).__name__}: {error}" for name, error in failures[:10])
    raise StagesFailed(
        f"{len(failures)} of {total} {stage} tasks failed; what the others made is stored, and running the same "
        f"command again does only what is missing:\n{lines}"
    ) from failures[0][1]
