"""A run that is cancelled, in Prefect's UI or by Ctrl-C in its shell, stops and ends as Cancelled."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled

from cudd_core import errors
from tasks.progress import stop_requested

_POLL_SECONDS = 3.0
_log = logging.getLogger("cudd.cancel")

_said: set[str] = set()
"""Flow runs of this process that were cancelled, and that Prefect was told about."""

_interrupted = False
"""Whether Ctrl-C was pressed in the shell that a run was started from."""


@contextmanager
def cancelled_by_interrupt() -> Iterator[None]:
    """Let Ctrl-C cancel the flow that is called inside, and a second one end this process at once.

    For a run from a shell alone: one of a worker that somebody interrupts has crashed and is started again.
    """
    global _interrupted
    _interrupted = False
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # ignored, as in what a script starts in the background
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        # After the first, all that is left is to end, which may wait for a step.
        if not _interrupted:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    # The system's own way to end works whatever this process is waiting for.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    shown = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # the cursor, which bars hide
    # Not by `print`, which may be what was interrupted.
    os.write(2, f"{shown}Stopping at the next step. Ctrl-C again ends it at once.\n".encode())
    raise KeyboardInterrupt


@contextmanager
def stop_when_cancelled(flow_run: str | None) -> Iterator[None]:
    """Ask Prefect every few seconds whether the flow run was cancelled; if so, tell its stages to stop.

    Only a worker's runs get a signal. A server that does not answer is asked again. When this is left, a run that was
    Cancelling or interrupted is Cancelled: Prefect's worker says so only after it has imported the flow, to look for
    hooks.

    Raises:
        Cancelled: in place of the interrupt of a shell, after which Prefect would call the run crashed.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(flow_run, ended), name="cudd-cancel", daemon=True)
    if flow_run is not None:
        watcher.start()
    try:
        yield
    except BaseException as error:
        if flow_run is not None:
            _say_cancelled(flow_run)
        if _interrupted and isinstance(error, KeyboardInterrupt):
            raise errors.Cancelled("The run was interrupted.") from error
        raise
    finally:
        ended.set()


def keep_cancelled(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook of a flow that failed or crashed: one that was stopped by somebody is Cancelled."""
    if _interrupted or str(flow_run.id) in _said:
        _say_cancelled(str(flow_run.id))


def _say_cancelled(flow_run: str) -> None:
    """Make a run Cancelled that is Cancelling or was interrupted.

    If that fails, a worker's run becomes it later, by the worker or by an automation.
    """
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run)).state
            if _interrupted or flow_run in _said or (state is not None and state.type is StateType.CANCELLING):
                message = "All stages have stopped; what they finished is stored."
                client.set_flow_run_state(UUID(flow_run), Cancelled(message=message), force=True)
                _said.add(flow_run)
    except Exception as error:
        # Whatever the client raises: why the run ends matters more.
        _log.debug("Prefect could not be told that the run is cancelled: %s", error)


def _asked_to_stop(client: SyncPrefectClient, flow_run: str) -> bool:
    """Whether somebody asked Prefect to cancel the flow run."""
    state = client.read_flow_run(UUID(flow_run)).state
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)


def _watch(flow_run: str, ended: threading.Event) -> None:
    while not ended.is_set():
        try:
            # One client for the whole run: making one reads all certificates anew.
            with get_client(sync_client=True) as client:
                while not ended.wait(_POLL_SECONDS):
                    if _asked_to_stop(client, flow_run):
                        _log.info("the run was cancelled; stages stop at their next step")
                        stop_requested.set()
                        return
        except Exception as error:
            # Whatever the client raises: the run matters more than its watcher.
            _log.debug("Prefect did not say whether the run was cancelled: %s", error)
            ended.wait(_POLL_SECONDS)
