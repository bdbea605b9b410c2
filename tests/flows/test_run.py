"""What a run hands to Prefect with its tasks. Through Prefect's own runner and server."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from cudd_core.compute.runtime import ComputeConfig
from cudd_core.data.source import DataConfig
from flows.run import _DRAWN, PipelineRun, Round, Submitted
from tasks.context import DataRef, StageContext
from tasks.refs import Ref
from tasks.stage import stage_task
from tasks.store import Store

seen: dict[int, tuple[tuple[Ref, ...], int]] = {}


@stage_task("made", "made {number}")
def made(context: StageContext, number: int) -> State[Ref]:
    key = f"{number:064x}"
    return Completed(data=Ref("made", key, key[:32], key, number))


@stage_task("reads", "reads")
def reads(context: StageContext, refs: tuple[Ref, ...]) -> State[Ref]:
    task = TaskRunContext.get()
    assert task is not None
    seen[len(refs)] = refs, len(task.task_run.task_inputs["refs"])
    return Completed(data=refs[0])


@pytest.mark.usefixtures("prefect_server", "no_store_variables")
def test_prefect_draws_few_inputs_of_a_task_but_not_thousands(tmp_path: Path) -> None:
    data = DataRef(DataConfig(), "", "", 10)
    run = PipelineRun(StageContext(Store.from_environment(tmp_path), data, ComputeConfig(), 0, ""))

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=4))  # type: ignore[arg-type]
    def whole() -> None:
        refs = tuple(run.submit(made, number).future.result() for number in range(_DRAWN + 1))
        for some in (refs, refs[:-1]):
            run.submit(reads, some).future.result()
        assert seen == {_DRAWN + 1: (refs, 0), _DRAWN: (refs[:-1], _DRAWN)}

    whole()


def test_a_long_stage_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that goes on finds what it made before, task by task, for minutes if there are thousands."""
    caplog.set_level(logging.INFO, "cudd")
    monkeypatch.setattr("flows.run._TOLD_SECONDS", 0.0)
    data = DataRef(DataConfig(), "", "", 10)
    run = PipelineRun(StageContext(Store.from_environment(tmp_path), data, ComputeConfig(), 0, ""))
    monkeypatch.setattr(PipelineRun, "_link", lambda *_: None)
    states = [("Reused", "a"), ("Completed", "b"), ("Reused", "c")]
    tasks = [Submitted(key, cast(Any, Ended(name, Ref("made", key, "", "", 1)))) for name, key in states]
    run.gather("made", tasks)
    run.gather("made", tasks, Round("curriculum 2", ""))
    assert [record.getMessage() for record in caplog.records] == [
        *(f"made: {n} of 3 tasks are done, {found} found in the store" for n, found in ((0, 0), (1, 1), (2, 1))),
        *(
            f"made of curriculum 2: {n} of 3 tasks are done, {m} found in the store"
            for n, m in ((0, 0), (1, 1), (2, 1))
        ),
    ]


@dataclass
class Ended:
    """A task that has ended."""

    name: str
    ref: Ref

    def wait(self) -> None:
        """Wait for nothing."""

    def result(self) -> Ref:
        return self.ref

    @property
    def state(self) -> State[Ref]:
        return Completed(name=self.name, data=self.ref)
