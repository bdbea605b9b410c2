"""Stages in real Ray workers on this machine."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.source import DataConfig
from cudd_core.errors import Cancelled, ConfigError, ModelError
from cudd_core.progress import CONTINUED, Progress
from cudd_core.records import Record, Verdicts
from tasks import remote
from tasks.call import StageCall
from tasks.context import DataRef, StageContext
from tasks.progress import Reporter, draw_on, stop_requested
from tasks.refs import Ref
from tasks.remote import perform_on_ray, ray_session
from tasks.runners import check_runner
from tasks.store import Store

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
MakeStore = Callable[..., Store]


@pytest.fixture(scope="module")
def session() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDD_SLOTS", "2")
        # Workers unpickle this module's functions by value: they cannot import a test.
        import ray.cloudpickle

        ray.cloudpickle.register_pickle_by_value(__import__("sys").modules[__name__])
        with ray_session("ray", ComputeConfig()):
            yield


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    yield
    draw_on(None)


def call(store: Store, number: int, body: Callable[[Runtime, Path, Progress], Record], **config: object) -> StageCall:
    data = DataRef(DataConfig(source="digits", image_size=8, channels=1), "t", "e", 10)
    context = StageContext(store, data, ComputeConfig(), 0, "", runner="ray")
    return StageCall(context, "classify", f"part {number}", 1, {"n": number, **config}, {}, body, True, None)


def verdicts(number: int) -> Verdicts:
    return Verdicts(torch.arange(number), torch.zeros(number, dtype=torch.int32))


def test_a_body_runs_in_another_process_and_is_stored(session: None, store: Store) -> None:
    def body(runtime: Runtime, work: Path, progress: Progress) -> Record:
        (work / "extra").mkdir()
        (work / "extra" / "pid").write_text(str(os.getpid()))
        progress(1, 2, {"loss": 1.0})
        return verdicts(3)

    ref = perform_on_ray(call(store, 3, body), Reporter("part 3"))
    assert not ref.reused
    record = store.fetch(ref)
    assert isinstance(record, Verdicts) and len(record.indices) == 3
    assert int((store.fetch_folder(ref) / "pid").read_text()) != os.getpid()
    again = perform_on_ray(call(store, 3, body), Reporter("part 3"))
    assert again.reused and again.digest == ref.digest


def test_errors_arrive_as_they_were_raised(session: None, store: Store) -> None:
    def body(runtime: Runtime, work: Path, progress: Progress) -> Record:
        raise ModelError("the teacher is near chance")

    with pytest.raises(ModelError, match="near chance"):
        perform_on_ray(call(store, 4, body), Reporter("part 4"))


def test_progress_and_stop_reach_the_other_side(session: None, store: Store) -> None:
    def body(runtime: Runtime, work: Path, progress: Progress) -> Record:
        for step in range(1, 1200):
            time.sleep(0.05)
            progress(step, 1200, {"loss": 1.0})
        return verdicts(5)

    drawn = list[float]()

    def draw(reporter: Reporter, done: float, total: int, metrics: object) -> None:
        drawn.append(done)
        stop_requested.set()

    draw_on(draw)
    began = time.monotonic()
    with pytest.raises(Cancelled):
        perform_on_ray(call(store, 5, body), Reporter("part 5"))
    assert drawn and drawn[0] > 0
    assert time.monotonic() - began < 50, "the body alone takes 60 s"


def test_a_stop_that_a_report_meets_ends_the_worker_too(
    session: None, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_STOP_SECONDS", 600.0)

    class Late(Reporter):
        def __call__(self, done: float, total: int, metrics: Mapping[str, float]) -> None:
            stop_requested.set()
            super().__call__(done, total, metrics)

    def body(runtime: Runtime, work: Path, progress: Progress) -> Record:
        for step in range(1, 1200):
            time.sleep(0.05)
            progress(step, 1200, {})
        return verdicts(7)

    stopped = call(store, 7, body)
    with pytest.raises(Cancelled):
        perform_on_ray(stopped, Late("part 7"))
    assert [each.status for each in store.ledger().attempts if each.key == stopped.key] == ["KILLED"]


def test_a_killed_worker_is_replaced(session: None, store: Store) -> None:
    def body(runtime: Runtime, work: Path, progress: Progress) -> Record:
        if not (work / "seen").exists():
            (work / "seen").write_text("")
            os.kill(os.getpid(), 9)
        return verdicts(6)

    ref = perform_on_ray(call(store, 6, body), Reporter("part 6"))
    record = store.fetch(ref)
    assert isinstance(record, Verdicts) and len(record.indices) == 6
    attempts = store.ledger().attempts
    assert sorted(each.status for each in attempts if each.key == ref.key) == ["FINISHED", "KILLED"]


def test_bodies_run_side_by_side_in_warm_workers(session: None, store: Store) -> None:
    def body(runtime: Runtime, work: Path, progress: Progress) -> Record:
        time.sleep(0.2)
        (work / "extra").mkdir()
        (work / "extra" / "pid").write_text(str(os.getpid()))
        return verdicts(1)

    found = list[Ref]()

    def one(number: int) -> None:
        found.append(perform_on_ray(call(store, 100 + number, body), Reporter(f"part {number}")))

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pids = {(store.fetch_folder(ref) / "pid").read_text() for ref in found}
    assert len(found) == 6 and len(pids) <= 3, "a process for each task"


def test_reporting_does_not_wait(session: None) -> None:
    # A task that waits in Ray gives its core away: one more worker starts, and imports all there is.
    class Slow(remote.Board):
        def report(self, call: str, done: int, total: int, metrics: dict[str, float]) -> bool:
            time.sleep(60)
            return False

    board = ray.remote(num_cpus=0)(Slow).remote()
    listener = remote.WorkerListener("part", "key", board)
    began = time.monotonic()
    listener.started()
    for step in range(12):
        time.sleep(0.1)
        listener(step, 12, {})
    assert time.monotonic() - began < 50
    ray.kill(board)


def test_a_run_goes_on_without_the_board_s_machine(session: None) -> None:
    """The board is in a process of some machine, which may be lost; what it knew is, but not the tasks."""
    board = ray.get_actor(remote._BOARD)
    listener = remote.WorkerListener("part", "key", board)
    listener.started()
    assert ray.get(board.read.remote("key")) == (0, 1, {})
    ray.kill(board, no_restart=False)
    listener._told = 0.0
    listener(1, 4, {"loss": 0.5})
    assert ray.get(board.read.remote("key"), timeout=120) in (None, (1, 4, {"loss": 0.5}))
    ray.get(board.forget.remote("key"))


def test_metrics_hold_until_there_are_others(session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an epoch progress is told without any."""
    monkeypatch.setattr(remote, "_TELL_SECONDS", 3600.0)
    board = ray.remote(num_cpus=0)(remote.Board).remote()
    listener = remote.WorkerListener("part", "key", board)
    listener._told = time.monotonic()
    listener(1, 4, {CONTINUED: 1})
    listener(1, 4, {"loss": 0.5})
    assert ray.get(board.read.remote("key")) is None, "told too soon"
    monkeypatch.setattr(remote, "_TELL_SECONDS", 0.0)
    listener(1.5, 4, {})
    assert ray.get(board.read.remote("key")) == (1.5, 4, {CONTINUED: 1, "loss": 0.5})
    ray.kill(board)


def test_runners_are_checked_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x")
    check_runner("local")
    check_runner("ray")
    with pytest.raises(ConfigError, match="choose local, ray"):
        check_runner("slurm")
    with pytest.raises(ConfigError, match=r"database sqlite:///.*x\. Set MLFLOW_TRACKING_URI"):
        check_runner("ray://head:10001")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    check_runner("ray://head:10001")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs Ray"):
        check_runner("ray")
