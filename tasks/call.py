"""One stage's work as a value, performed here or in a Ray worker: look up, wait for a device, compute, store."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.progress import Progress
from cudd_core.records import Record
from tasks.caching import cached_stage
from tasks.context import StageContext
from tasks.keys import stage_key
from tasks.ledger import SECONDS
from tasks.mlflow_runs import MetricRow
from tasks.refs import Ref
from tasks.runners import LOCAL
from tasks.slots import device_slots


class Body(Protocol):
    """A stage's work, given its device or devices, a resumable folder and a progress callback."""

    def __call__(self, runtime: Runtime, work: Path, progress: Progress) -> Record:
        """Compute the record."""
        ...


class Listener(Protocol):
    """Receives a stage's progress: the task's own reporter, or a Ray worker's connection to it."""

    title: str

    def started(self) -> None:
        """Report that the work begins."""
        ...

    def check(self) -> None:
        """Raise Cancelled if a stop was asked for."""
        ...

    def __call__(self, done: float, total: int, metrics: Mapping[str, float]) -> None:
        """Report that `done` of `total` steps are made. Raises like `check`."""
        ...


@dataclass(frozen=True)
class StageCall:
    """One stage's work and everything it needs, to be performed here or, pickled, in a Ray worker."""

    context: StageContext
    stage: str
    title: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    body: Body
    computes: bool
    metrics_of: Callable[[Any], list[MetricRow]] | None
    trains: bool = False

    @property
    def key(self) -> str:
        """The stage key."""
        return stage_key(self.stage, self.version, self.config, self.inputs)

    @property
    def forced(self) -> bool:
        """Whether to compute it even if an output is stored."""
        return self.stage in self.context.force and self.key not in self.context.remade

    @property
    def _compute(self) -> ComputeConfig:
        whole = self.context.compute
        # Stages that run no network also run where there is no GPU, such as in the driver of a Ray cluster. Threads and
        # determinism are the whole process's: tasks beside this one compute with them.
        return whole if self.computes else ComputeConfig(threads=whole.threads, deterministic=whole.deterministic)

    def perform(self, listener: Listener) -> Ref:
        """Return the reference to the output, computed or found."""
        began = time.monotonic()

        def compute(work: Path) -> Record:
            nonlocal began
            local = self.computes and self.context.runner == LOCAL
            count = self.context.compute.data_parallel if self.trains else 1
            slots = device_slots(self.context.compute, count, self.context.patient) if local else None
            with slots or nullcontext((0,) * count) as devices:
                listener.check()
                listener.started()
                began = time.monotonic()
                return self.body(Runtime(self._compute, *devices), work, listener)

        def metrics(record: Record) -> list[MetricRow]:
            # Time on the device, without waiting for one: what the output cost, whoever reuses it later.
            took: MetricRow = (SECONDS, time.monotonic() - began, 0)
            return [took, *(self.metrics_of(record) if self.metrics_of is not None else ())]

        return cached_stage(
            self.context.store,
            stage=self.stage,
            version=self.version,
            config=self.config,
            inputs=self.inputs,
            compute=compute,
            force=self.forced,
            params={"title": self.title, **self.inputs},
            metrics_of=metrics,
            tags={"cudd.title": self.title, "cudd.pipeline_run": self.context.pipeline_run},
            check=listener.check,
        )
