"""A run that is cancelled in Prefect's UI stops wherever it was started from, a shell included."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType

from tasks.progress import stop_requested

_POLL_SECONDS = 3.0
_log = logging.getLogger("cudd.cancel")


@contextmanager
def stop_when_cancelled(flow_run: str | None) -> Iterator[None]:
    """Ask Prefect every few seconds whether the flow run was cancelled; if so, tell its stages to stop.

    Only a worker's runs get a signal. A server that does not answer is asked again.
    """
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(flow_run, ended), name="cudd-cancel", daemon=True)
    if flow_run is not None:
        watcher.start()
    try:
        yield
    finally:
        ended.set()


def cancelled(flow_run: str | None) -> bool:
    """Whether somebody asked Prefect to cancel the flow run."""
    if flow_run is None:
        return False
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(flow_run)).state
    return state is not None and state.type in (StateType.CANCELLING, StateType.CANCELLED)


def _watch(flow_run: str, ended: threading.Event) -> None:
    while not ended.wait(_POLL_SECONDS):
        try:
            if cancelled(flow_run):
                _log.info("the run was cancelled; stages stop at their next step")
                stop_requested.set()
                return
        except Exception as error:
            # Whatever the client raises: the run matters more than its watcher.
            _log.debug("Prefect did not say whether the run was cancelled: %s", error)
