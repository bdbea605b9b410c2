"""A run that is cancelled in Prefect's UI stops wherever it was started from, a shell included."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled

from tasks.progress import stop_requested

_POLL_SECONDS = 3.0
_log = logging.getLogger("cudd.cancel")

_said: set[str] = set()
"""Flow runs of this process that were cancelled, and that Prefect was told about."""


@contextmanager
def stop_when_cancelled(flow_run: str | None) -> Iterator[None]:
    """Ask Prefect every few seconds whether the flow run was cancelled; if so, tell its stages to stop.

    Only a worker's runs get a signal. A server that does not answer is asked again. When this is left, a run that was
    Cancelling is Cancelled: Prefect's worker says so only after it has imported the flow, to look for hooks.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(flow_run, ended), name="cudd-cancel", daemon=True)
    if flow_run is not None:
        watcher.start()
    try:
        yield
    except BaseException:
        if flow_run is not None:
            _say_cancelled(flow_run)
        raise
    finally:
        ended.set()


def keep_cancelled(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Hook of a flow that failed: one that was stopped before Prefect's signal came is Cancelled, not Failed."""
    if str(flow_run.id) in _said:
        _say_cancelled(str(flow_run.id))


def _say_cancelled(flow_run: str) -> None:
    """Turn Cancelling into Cancelled. If that fails, the worker does it later, and after it an automation."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run)).state
            if flow_run in _said or (state is not None and state.type is StateType.CANCELLING):
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
