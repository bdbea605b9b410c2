"""What every task does around one core function: its key, its work here or on Ray, its state, what it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, ParamSpec, TypeVar, overload

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed

from tasks.caching import fetch_input
from tasks.call import Body, StageCall
from tasks.context import StageContext
from tasks.mlflow_runs import MetricRow
from tasks.naming import called
from tasks.progress import Reporter
from tasks.refs import Ref
from tasks.remote import perform_on_ray
from tasks.runners import LOCAL

Given = ParamSpec("Given")
Wanted = TypeVar("Wanted")


def stage_task(name: str, run_name: str) -> Callable[[Callable[Given, State[Ref]]], Task[Given, State[Ref]]]:
    """Return the decorator of a stage's task, whose runs are named `run_name`, filled with the arguments.

    Prefect's own result cache is off: outputs are found in the store, by their keys.
    """
    return task(name=name, task_run_name=called(run_name), cache_policy=NO_CACHE)


def run_stage(
    context: StageContext,
    *,
    stage: str,
    title: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, Ref | str | tuple[Ref, ...] | None],
    body: Body,
    computes: bool,
    draws: bool,
    trains: bool = False,
    metrics_of: Callable[[Any], list[MetricRow]] | None = None,
) -> State[Ref]:
    """Return the reference to the stage's output, in a state named `Reused` if nothing had to be computed.

    `config`: the settings that the stage reads. `inputs`: by name, a reference, a plain digest, several references
    (numbered from 0), or None for no input. `computes`: it runs a network, so the compute settings enter its key and it
    waits for a device. `draws`: it has a random stream, so the seed enters its key. `trains`: `compute.data_parallel`
    processes share it, so that number enters its key, and it waits for as many devices.
    """
    unread = {"lanes"} if trains else {"lanes", "data_parallel"}
    read = {
        **config,
        **({"compute": context.compute.identity(unread=unread)} if computes else {}),
        **({"seed": context.seed} if draws else {}),
    }
    call = StageCall(context, stage, title, version, read, _digests(inputs), body, computes, metrics_of, trains)
    if context.ledger is not None:
        return context.ledger.state(stage, call.key, title)
    reporter = Reporter(title)
    try:
        reporter.check()  # tasks that a stopped run had queued begin nothing
        remote = computes and context.runner != LOCAL
        ref = perform_on_ray(call, reporter) if remote else call.perform(reporter)
        reporter.finished()
    finally:
        reporter.close()
    state: State[Ref] = Completed(name="Reused" if ref.reused else "Completed", data=ref, message=str(ref))
    return state


def _digests(inputs: Mapping[str, Ref | str | tuple[Ref, ...] | None]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in inputs.items():
        if isinstance(value, tuple):
            found |= {f"{name} {number}": ref.digest for number, ref in enumerate(value)}
        elif value is not None:
            found[name] = value.digest if isinstance(value, Ref) else value
    return found


@overload
def fetch(context: StageContext, ref: Ref, kind: type[Wanted]) -> Wanted: ...
@overload
def fetch(context: StageContext, ref: Ref, kind: UnionType) -> Any: ...
def fetch(context: StageContext, ref: Ref, kind: type[Any] | UnionType) -> Any:
    """Return the record behind `ref`, which must be of `kind`."""
    record = fetch_input(context.store, ref)
    assert isinstance(record, kind), f"{ref} is a {type(record).__name__}, not a {kind}"
    return record


def epoch_metrics(history: tuple[dict[str, float], ...]) -> list[MetricRow]:
    """Turn rows of a training history into MLflow curves over epochs."""
    return [(name, value, int(row["epoch"])) for row in history for name, value in row.items() if name != "epoch"]
