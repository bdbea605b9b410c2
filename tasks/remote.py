"""Heavy stages in Ray workers. Prefect's tasks stay in the driver: they look up keys, send the work and wait.

Workers stay warm (`max_calls=0`): torch, CUDA and the data source are loaded once per worker, not once per task. If a
worker dies, Ray replaces it and sends the task again, which resumes from its checkpoint if the home has survived.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

from cudd_core.compute.runtime import ComputeConfig
from cudd_core.errors import Cancelled, CuddError, ResourceError
from tasks.call import StageCall
from tasks.progress import Reporter, stop_requested
from tasks.refs import Ref
from tasks.runners import LOCAL
from tasks.slots import slot_count

_TELL_SECONDS = 1.0
"""A worker's reports to the board are at least this far apart; the answer tells it whether to stop."""
_READ_SECONDS = 2.0
"""Time between the driver's reads of the board, per task sent. Reading takes CPU time away from the workers."""
_STOP_SECONDS = 8.0
"""How long a worker may take to stop on its own before it is killed."""
_WORKER_DEATHS = 3
_STARTS = 3
_BOARD = "cudd-board"


@contextmanager
def ray_session(runner: str, compute: ComputeConfig) -> Iterator[None]:
    """Connect to Ray, or start it on this machine; at the end, disconnect and end every worker that was started."""
    if runner == LOCAL:
        yield
        return
    import ray

    # Otherwise Ray overrides CUDA_VISIBLE_DEVICES for tasks that ask for no GPU, with a warning.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if runner == "ray":
        cores = slot_count(compute) * compute.threads if compute.device == "cpu" else None
        options |= {"num_cpus": cores, "include_dashboard": False}
    else:
        options |= {"address": runner}
    _start(runner, options)
    # The board may run on any machine. If that one is lost, so is the board's state, which costs a line of progress.
    lasting = {"max_restarts": -1, "max_task_retries": -1}
    board = _actor_class().options(name=_BOARD, get_if_exists=True, num_cpus=0, **lasting).remote()
    try:
        yield
    finally:
        del board
        ray.shutdown()


def _start(runner: str, options: dict[str, Any]) -> None:
    """Start or reach Ray, trying several times: a busy machine can miss Ray's own time limit for its first process."""
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises bare ones
            ray.shutdown()
            if attempt == _STARTS:
                raise ResourceError(f"--runner {runner}: Ray cannot be reached or started: {error}") from error


class Board:
    """An actor between workers and driver that holds each call's progress, and which calls are to stop."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[float, int, dict[str, float]]] = {}
        self.stopped: set[str] = set()

    def report(self, call: str, done: float, total: int, metrics: dict[str, float]) -> bool:
        """Note a call's progress; return whether it is to stop."""
        self.rows[call] = (done, total, metrics)
        return call in self.stopped

    def read(self, call: str) -> tuple[float, int, dict[str, float]] | None:
        """Return a call's progress; None if it has not begun."""
        return self.rows.get(call)

    def stop(self, call: str) -> None:
        """Ask a call to stop; it learns of this from the answer to its next report."""
        self.stopped.add(call)

    def forget(self, call: str) -> None:
        """Forget a call that has ended."""
        self.rows.pop(call, None)
        self.stopped.discard(call)


class WorkerListener:
    """A stage's listener in a worker: reports to the board at most once a second, and never waits for the answer.

    Ray gives the core of a task that waits in `ray.get` to another task. When a worker waited for the board's answer,
    Ray started one more worker, with its imports, and then ended one of the two as surplus: a new process per task.
    """

    def __init__(self, title: str, call: str, board: Any) -> None:
        self.title, self.call, self.board = title, call, board
        self._told = 0.0
        self._metrics: dict[str, float] = {}
        self._answer: Future[bool] | None = None

    def started(self) -> None:
        """Report that the work begins."""
        self._tell(0, 1, {})

    def check(self) -> None:
        """Raise Cancelled if the driver wants the call to stop."""
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._tell(0, 1, {})

    def __call__(self, done: float, total: int, metrics: Mapping[str, float]) -> None:
        """Report progress. Raises like `check`."""
        # Few calls have metrics and few are reported: without this, the driver would hardly ever see any metrics.
        self._metrics |= metrics
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._tell(done, total, dict(self._metrics))

    def _tell(self, done: float, total: int, metrics: dict[str, float]) -> None:
        if self._answer is not None:
            if not self._answer.done():
                return
            if self._answer.result():
                raise Cancelled(f"{self.title} was stopped.")
        self._told = time.monotonic()
        self._answer = self.board.report.remote(self.call, done, total, metrics).future()


def perform_on_ray(call: StageCall, reporter: Reporter) -> Ref:
    """Return what `call.perform` returns, run in a worker unless the output is stored already.

    The driver does not download outputs that it reuses: whoever reads them verifies them.

    Raises:
        Cancelled: a stop was asked for.
        ResourceError: workers died repeatedly.
        Whatever the stage raises.
    """
    if not call.forced and (found := call.context.store.lookup(call.key)) is not None:
        return found
    import ray

    board = ray.get_actor(_BOARD)
    compute = call.context.compute
    gpus = 1 if compute.device == "cuda" else 0
    cores = compute.threads
    if cores > 1:  # no more than there are, or it would wait for ever; checked only if it matters, not for every task
        cores = min(cores, ray.cluster_resources().get("CPU", 1))
    sent = _remote_function().options(num_cpus=cores, num_gpus=gpus)
    future = sent.remote(call, board)
    try:
        return _wait(call, future, board, reporter)
    except ray.exceptions.TaskCancelledError as error:
        # No worker had begun it yet.
        raise Cancelled(f"{call.title} was stopped.") from error
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise ResourceError(
            f"{call.title}: Ray workers died {_WORKER_DEATHS + 1} times at it ({type(error).__name__}). Usually memory "
            f"ran out: lower synthesis.batch_size or block sizes, or give workers more."
        ) from error
    finally:
        board.forget.remote(call.key)


def _wait(call: StageCall, future: Any, board: Any, reporter: Reporter) -> Ref:
    import ray

    begun, deadline = False, float("inf")
    while True:
        ready, _ = ray.wait([future], timeout=_READ_SECONDS)
        if ready:
            outcome: Ref | BaseException = ray.get(future)
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        if stop_requested.is_set() and deadline == float("inf"):
            deadline = time.monotonic() + _STOP_SECONDS
            board.stop.remote(call.key)
            ray.cancel(future, force=False)
        if time.monotonic() > deadline:
            ray.cancel(future, force=True)
            raise Cancelled(f"{call.title} was stopped.")
        row = ray.get(board.read.remote(call.key))
        if row is not None and deadline == float("inf"):
            if not begun:
                reporter.started()
                begun = True
            if row[0]:
                # A stop that was asked for since the check above must reach the worker first.
                with suppress(Cancelled):
                    reporter(*row)


def _perform(call: StageCall, board: Any) -> Ref | BaseException:
    """The body of the Ray task. Our own errors are returned, since Ray would wrap raised ones in another class."""
    try:
        return call.perform(WorkerListener(call.title, call.key, board))
    except (CuddError, KeyboardInterrupt) as error:
        return error if isinstance(error, CuddError) else Cancelled(f"{call.title} was stopped.")


@functools.cache
def _remote_function() -> Any:
    import ray

    return ray.remote(max_calls=0, max_retries=_WORKER_DEATHS)(_perform)


@functools.cache
def _actor_class() -> Any:
    import ray

    return ray.remote(Board)
