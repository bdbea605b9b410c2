"""What every task does around one core function: look up, wait for a device, fetch, compute, store, link."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefect.client.schemas.objects import State
from prefect.states import Completed

from cudd_core.data import open_split
from cudd_core.data.source import DataConfig, ImageSplit
from cudd_core.records import Record
from cudd_core.runtime import ComputeConfig, Runtime
from tasks.caching import cached_stage, fetch_input
from tasks.progress import Reporter, check_not_stopped
from tasks.refs import Ref
from tasks.slots import device_slot
from tasks.store import MetricRow, Store

_log = logging.getLogger("cudd.stage")


@dataclass(frozen=True)
class DataRef:
    """A data source and the digests of its splits: digests enter keys, `config` (a place) does not."""

    config: DataConfig
    train: str
    test: str

    def open_train(self) -> ImageSplit:
        """The split that is distilled."""
        return open_split(self.config, self.config.train_split)

    def open_test(self) -> ImageSplit:
        """The split that accuracies are measured on."""
        return open_split(self.config, self.config.test_split)


@dataclass(frozen=True)
class StageContext:
    """What all stages of a run share. Picklable, small, and no part of it but `compute` and `seed` enters keys."""

    store: Store
    data: DataRef
    compute: ComputeConfig
    seed: int
    pipeline_run: str
    force: frozenset[str] = frozenset()


class Body(Protocol):
    """A stage's work, given its device, a resumable folder and a progress callback."""

    def __call__(self, runtime: Runtime, work: Path, progress: Reporter) -> Record:
        """Compute the record."""
        ...


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
    metrics_of: Callable[[Any], list[MetricRow]] | None = None,
) -> State[Ref]:
    """Return the reference to the stage's output, in a state named `Reused` where nothing had to be computed.

    `config`: what the stage reads. `inputs`: by name, references or plain digests. `computes`: it runs a network, so
    the compute settings enter its key and it waits for a device. `draws`: it has a random stream, so the seed enters.
    """
    digests = {name: value.digest if isinstance(value, Ref) else value for name, value in inputs.items()}
    reporter = Reporter(title)

    def compute(work: Path) -> Record:
        with device_slot(context.compute) if computes else nullcontext():
            check_not_stopped(title)
            reporter.started()
            return body(Runtime(context.compute), work, reporter)

    try:
        ref, reused = cached_stage(
            context.store,
            stage=stage,
            version=version,
            config={
                **config,
                **({"compute": context.compute.model_dump()} if computes else {}),
                **({"seed": context.seed} if draws else {}),
            },
            inputs=digests,
            compute=compute,
            force=stage in context.force,
            params={"title": title, **digests},
            metrics_of=metrics_of,
            tags={"cudd.pipeline_run": context.pipeline_run},
            check=lambda: check_not_stopped(title),
        )
    finally:
        reporter.close()
    state: State[Ref] = Completed(name="Reused" if reused else "Completed", data=ref, message=str(ref))
    return state


def fetch(context: StageContext, ref: Ref, kind: type[Any]) -> Any:
    """Return the record behind `ref`, which must be of `kind`."""
    record = fetch_input(context.store, ref)
    assert isinstance(record, kind), f"{ref} is a {type(record).__name__}, not a {kind.__name__}"
    return record


def epoch_metrics(history: tuple[dict[str, float], ...]) -> list[MetricRow]:
    """Turn rows of a training history into MLflow curves over epochs."""
    return [(name, value, int(row["epoch"])) for row in history for name, value in row.items() if name != "epoch"]
