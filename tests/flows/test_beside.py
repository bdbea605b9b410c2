"""Two branches of a run at the same time: order of devices, room, failures. Through Prefect's own runner."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cudd_core.compute.runtime import ComputeConfig
from cudd_core.errors import ArtifactDamaged, Cancelled, ConfigError
from flows.run import PipelineRun, StagesFailed, _covered
from tasks.call import Body, StageCall
from tasks.context import DataRef, StageContext
from tasks.progress import stop_requested
from tasks.store import Store


@pytest.fixture
def run(tmp_path: Path) -> PipelineRun:
    store = Store.from_environment(tmp_path)
    data: Any = DataRef.__new__(DataRef)  # nothing here reads it
    return PipelineRun(StageContext(store, data, ComputeConfig(), 0, ""))


def raising(error: BaseException) -> Callable[[PipelineRun], None]:
    def branch(run: PipelineRun) -> None:
        raise error

    return branch


def test_both_branches_go_on_at_the_same_time_and_give_what_they_left(run: PipelineRun) -> None:
    both_here = threading.Barrier(2, timeout=20)

    def branch(value: str) -> Callable[[PipelineRun], str]:
        def go(run: PipelineRun) -> str:
            both_here.wait()
            run.tally.add(value, (0.0, 1.0), 1, [value, "key"])
            return value

        return go

    assert run.beside(branch("first"), branch("second")) == ("first", "second")
    assert (run.tally.reused, run.tally.computed, run.seconds) == (2, 4, {"first": 1.0, "second": 1.0})


def test_the_second_branch_s_tasks_wait_for_devices_and_the_first_one_s_do_not(run: PipelineRun) -> None:
    seen = run.beside(lambda mine: mine.context.patient, lambda theirs: theirs.context.patient)
    assert seen == (False, True)


@dataclass
class Future:
    """A task that ends when it is told to."""

    callbacks: list[Callable[[Any], None]] = field(default_factory=list)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callbacks.append(callback)

    def end(self) -> None:
        for each in self.callbacks:
            each(self)


@dataclass
class Endless:
    """Stands in for a task of which as many are started as somebody wants."""

    name: str = "endless"
    started: list[Future] = field(default_factory=list)

    def fn(self, *arguments: Any) -> None:
        """What its arguments are bound to."""

    def task_run_name(self, given: dict[str, Any]) -> str:
        return self.name

    def submit(self, *arguments: Any) -> Future:
        self.started.append(Future())
        return self.started[-1]


def test_the_second_branch_leaves_half_of_the_threads_to_the_first(
    run: PipelineRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDD_TASKS", "6")
    mine, theirs, total = Endless(), Endless(), 20

    def first(run: PipelineRun) -> int:
        for _ in range(total):
            run.submit(mine)  # type: ignore[arg-type]
        while len(theirs.started) < 3:
            time.sleep(0.01)
        time.sleep(0.2)
        most = len(theirs.started)
        ended = 0
        while ended < total:
            if ended < len(theirs.started):
                theirs.started[ended].end()
                ended += 1
        return most

    def second(run: PipelineRun) -> None:
        for _ in range(total):
            run.submit(theirs)  # type: ignore[arg-type]

    most, _ = run.beside(first, second)
    assert most == 3 and len(mine.started) == len(theirs.started) == total


def test_a_failing_branch_does_not_stop_the_other(run: PipelineRun) -> None:
    failed, finished = threading.Event(), []

    def first(run: PipelineRun) -> None:
        failed.set()
        raise StagesFailed("2 of 5 tasks")

    def second(run: PipelineRun) -> None:
        assert failed.wait(20)
        time.sleep(0.05)
        assert not stop_requested.is_set()
        finished.append(True)

    with pytest.raises(StagesFailed, match="2 of 5"):
        run.beside(first, second)
    with pytest.raises(StagesFailed, match="2 of 5"):
        failed.clear()
        run.beside(lambda run: second(run), first)
    assert finished == [True, True]


@pytest.mark.parametrize("mistake_is_first", [True, False])
@pytest.mark.parametrize("error", [ConfigError("data.root"), KeyboardInterrupt(), Cancelled("stopped")])
def test_a_mistake_or_a_stop_ends_both(run: PipelineRun, error: BaseException, mistake_is_first: bool) -> None:
    def stopped(run: PipelineRun) -> None:
        assert stop_requested.wait(20)
        raise Cancelled("the other one's task was stopped")

    branches = (raising(error), stopped) if mistake_is_first else (stopped, raising(error))
    with pytest.raises(type(error)) as found:
        run.beside(*branches)
    assert found.value is error or isinstance(error, Cancelled)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT as a terminal's process has it: one that a shell started in the background inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_that_comes_while_the_second_branch_is_waited_for_stops_it(run: PipelineRun) -> None:
    main = threading.main_thread().ident
    assert main is not None

    def second(run: PipelineRun) -> None:
        time.sleep(0.2)  # the first branch is through
        signal.pthread_kill(main, signal.SIGINT)
        assert stop_requested.wait(20)
        raise Cancelled("stopped")

    with pytest.raises(KeyboardInterrupt):
        run.beside(lambda run: None, second)


ERRORS: list[BaseException] = [
    ConfigError("a mistake"),
    KeyboardInterrupt(),
    Cancelled("stopped"),
    ArtifactDamaged("a byte"),
    StagesFailed("3 tasks"),
]


@pytest.mark.parametrize("grave", range(len(ERRORS)))
@pytest.mark.parametrize("other", range(len(ERRORS)))
def test_of_two_failures_the_graver_one_is_told(run: PipelineRun, grave: int, other: int) -> None:
    if grave == other:
        with pytest.raises(type(ERRORS[grave])):
            run.beside(raising(ERRORS[grave]), raising(ERRORS[grave]))
        return
    expected = ERRORS[min(grave, other)]
    with pytest.raises(type(expected)) as found:
        run.beside(raising(ERRORS[grave]), raising(ERRORS[other]))
    assert found.value is expected


@pytest.mark.parametrize("first", [True, False])
def test_a_failure_keeps_what_caused_it(run: PipelineRun, first: bool) -> None:
    """The traceback of the task's own error is what somebody mends it by."""

    def failing(run: PipelineRun) -> None:
        raise StagesFailed("1 of 2 tasks") from OSError("a disk")

    branches = (failing, lambda run: None) if first else (lambda run: None, failing)
    with pytest.raises(StagesFailed) as found:
        run.beside(*branches)
    assert isinstance(found.value.__cause__, OSError)
    with pytest.raises(StagesFailed) as found:
        run.beside(failing, failing)
    assert isinstance(found.value.__cause__, OSError)


def test_what_both_branches_miss_is_told_together(run: PipelineRun) -> None:
    with pytest.raises(StagesFailed, match=r"(?s)synthesize.*relabel"):
        run.beside(raising(StagesFailed("synthesize 1")), raising(StagesFailed("relabel 2")))


def test_starting_over_makes_again_what_was_forced_but_was_not_yet_made(run: PipelineRun) -> None:
    run.context = replace(run.context, force=frozenset({"relabel"}))

    def forced(label: str) -> tuple[bool, str]:
        call = StageCall(run.context, "relabel", label, 1, {"set": label}, {}, cast(Body, None), True, None)
        return call.forced, call.key

    (_, first), (_, second) = forced("first"), forced("second")
    run.tally.add("relabel", (0.0, 1.0), 0, [first])
    run.start_over(ArtifactDamaged("a shard"))
    assert forced("first") == (False, first) and forced("second") == (True, second)
    run.tally.add("relabel", (0.0, 1.0), 1, [second])
    run.start_over(ArtifactDamaged("another"))
    assert not forced("first")[0] and not forced("second")[0]
    assert (run.tally.computed, run.tally.mended) == (0, 2)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted), max_size=8))
def test_seconds_in_which_two_branches_wait_count_once(waits: list[list[int]]) -> None:
    inside = {second for start, end in waits for second in range(start, end)}
    assert _covered([(float(start), float(end)) for start, end in waits]) == len(inside)
