"""What every task does around one core function: look up, wait for a device, fetch, compute, store, link."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, Protocol

from prefect.client.schemas.objects import State
from prefect.states import Completed

from cudd_core.data import open_split
from cudd_core.data.source import DataConfig, ImageSplit
from cudd_core.progress import Progress
from cudd_core.records import Record
from cudd_core.runtime import ComputeConfig, Runtime
from tasks.caching import cached_stage, fetch_input
from tasks.keys import stage_key
from tasks.ledger import SECONDS, Ledger
from tasks.progress import Reporter
from tasks.refs import Ref
from tasks.runners import LOCAL
from tasks.slots import device_slots
from tasks.store import MetricRow, Store


@dataclass(frozen=True)
class DataRef:
    """A data source and the digests of its splits: digests enter keys, `config` (a place) does not."""

    config: DataConfig
    train: str
    test: str
    num_classes: int

    def open_train(self, decoded: Path | None = None) -> ImageSplit:
        """The split that is distilled; `decoded`: see `open_split`, for those who read its images."""
        return open_split(self.config, self.config.train_split, decoded)

    def open_test(self, decoded: Path | None = None) -> ImageSplit:
        """The split that accuracies are measured on."""
        return open_split(self.config, self.config.test_split, decoded)


@dataclass(frozen=True)
class StageContext:
    """What all stages of a run share. Picklable, small, and no part of it but `compute` and `seed` enters keys.

    `force`: stages that are computed even if they are stored, except for the keys `remade`, for which that was done.
    `runner`: `local`, `ray` or `ray://host:port`. `ledger`: tasks only look their keys up in it. `patient`: whose tasks
    wait while others want a device. `weights`: digests of teachers' files by their place.
    """

    store: Store
    data: DataRef
    compute: ComputeConfig
    seed: int
    pipeline_run: str
    force: frozenset[str] = frozenset()
    remade: frozenset[str] = frozenset()
    runner: str = LOCAL
    ledger: Ledger | None = None
    patient: bool = False
    weights: Mapping[str, str] = field(default_factory=dict)

    def train_images(self) -> ImageSplit:
        """The split that is distilled, its images decoded once for this home."""
        return self.data.open_train(self.store.decoded_folder)

    def test_images(self) -> ImageSplit:
        """The split that accuracies are measured on, its images decoded once for this home."""
        return self.data.open_test(self.store.decoded_folder)


class Body(Protocol):
    """A stage's work, given its device or devices, a resumable folder and a progress callback."""

    def __call__(self, runtime: Runtime, work: Path, progress: Progress) -> Record:
        """Compute the record."""
        ...


class Listener(Protocol):
    """Whom a stage tells how it stands: the task's own reporter, or a Ray worker's line to it."""

    title: str

    def started(self) -> None:
        """The work begins."""
        ...

    def check(self) -> None:
        """Raise Cancelled if a stop was asked for."""
        ...

    def __call__(self, done: float, total: int, metrics: Mapping[str, float]) -> None:
        """`done` of `total` steps are made. Raises as `check`."""
        ...


@dataclass(frozen=True)
class StageCall:
    """One stage's work with all it needs, to be performed here or, pickled, in a Ray worker."""

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
        """Whether it is computed even if it is stored."""
        return self.stage in self.context.force and self.key not in self.context.remade

    @property
    def _compute(self) -> ComputeConfig:
        # What runs no network also runs where there is no GPU: in the driver of a Ray cluster.
        return self.context.compute if self.computes else ComputeConfig(threads=self.context.compute.threads)

    def perform(self, listener: Listener) -> tuple[Ref, bool]:
        """Return the reference to the output, computed or found, and whether it was found."""
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
            # What the work took on its device, without waiting for one: what it costs, whoever reuses it later.
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


def run_stage(
    context: StageContext,
    *,
    stage: str,
    title: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, Ref | str],
    body: Body,
    computes: bool,
    draws: bool,
    trains: bool = False,
    metrics_of: Callable[[Any], list[MetricRow]] | None = None,
) -> State[Ref]:
    """Return the reference to the stage's output, in a state named `Reused` where nothing had to be computed.

    `config`: what the stage reads. `inputs`: by name, references or plain digests. `computes`: it runs a network, so
    the compute settings enter its key and it waits for a device. `draws`: it has a random stream, so the seed enters.
    `trains`: `compute.data_parallel` processes share it, so that enters too, and as many devices are waited for.
    """
    unread = {"lanes"} if trains else {"lanes", "data_parallel"}
    read = {
        **config,
        **({"compute": context.compute.identity(unread=unread)} if computes else {}),
        **({"seed": context.seed} if draws else {}),
    }
    digests = {name: value.digest if isinstance(value, Ref) else value for name, value in inputs.items()}
    call = StageCall(context, stage, title, version, read, digests, body, computes, metrics_of, trains)
    if context.ledger is not None:
        return context.ledger.state(stage, call.key, title)
    reporter = Reporter(title)
    try:
        if computes and context.runner != LOCAL:
            from tasks.remote import perform_on_ray

            ref, reused = perform_on_ray(call, reporter)
        else:
            ref, reused = call.perform(reporter)
    finally:
        reporter.close()
    state: State[Ref] = Completed(name="Reused" if reused else "Completed", data=ref, message=str(ref))
    return state


def fetch(context: StageContext, ref: Ref, kind: type[Any] | UnionType) -> Any:
    """Return the record behind `ref`, which must be of `kind`."""
    record = fetch_input(context.store, ref)
    assert isinstance(record, kind), f"{ref} is a {type(record).__name__}, not a {kind}"
    return record


def epoch_metrics(history: tuple[dict[str, float], ...]) -> list[MetricRow]:
    """Turn rows of a training history into MLflow curves over epochs."""
    return [(name, value, int(row["epoch"])) for row in history for name, value in row.items() if name != "epoch"]
