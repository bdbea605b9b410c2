"""What a run hands to Prefect with its tasks. Through Prefect's own runner and server."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect import flow
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from cudd_core.compute.runtime import ComputeConfig
from cudd_core.data.source import DataConfig
from flows.run import _DRAWN, PipelineRun
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
