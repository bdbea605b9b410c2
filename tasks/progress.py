"""How a stage's progress is shown: a bar in a terminal, plain lines in a log, an artifact in Prefect's UI."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from cudd_core.errors import Cancelled
from cudd_core.progress import CONTINUED
from tasks.pages import show

_log = logging.getLogger("cudd.progress")

LOG_SECONDS = 15.0
"""Plain lines are at least this far apart, per task."""

UI_SECONDS = 3.0
"""Artifact updates are at least this far apart, per task."""

AWAY_SECONDS = 600.0
"""How long no task sends updates after one has failed: a server that is down holds up the sender for a minute."""

Sink = Callable[["Reporter", float, int, Mapping[str, float]], None]
"""`sink(reporter, done, total, metrics)`: draws the reporter's bar. `done == total` closes it."""

stop_requested = threading.Event()
"""Set by the flow when it ends or is cancelled: stages stop at their next step."""

_sink: Sink | None = None
_away_since = -AWAY_SECONDS


def draw_on(sink: Sink | None) -> None:
    """Send progress to `sink` instead of plain log lines; None switches back to lines."""
    global _sink
    _sink = sink


def check_not_stopped(title: str) -> None:
    """Raise Cancelled if a stop was asked for."""
    if stop_requested.is_set():
        raise Cancelled(f"{title} was stopped.")


class Reporter:
    """The `progress` callback of one task run."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._artifact: UUID | None = None
        self._logged = self._shown = time.monotonic()
        self._started = False
        self._metrics: Mapping[str, float] = {}
        self._continued = 0.0

    def check(self) -> None:
        """Raise Cancelled if a stop was asked for."""
        check_not_stopped(self.title)

    def started(self) -> None:
        """Report that the work begins: the lookup found nothing, and a device is free."""
        self._started = True
        self._logged = self._shown = time.monotonic()
        if _sink is None:
            _log.info(f"{self.title}: started")

    def __call__(self, done: float, total: int, metrics: Mapping[str, float]) -> None:
        """Report `done` of `total` steps. If `metrics` is empty, the last ones still hold.

        Raises:
            Cancelled: a stop was asked for.
        """
        self.check()
        self._metrics = metrics or self._metrics
        # A Ray worker repeats it with every report; more than before is what a worker that took over continues after.
        if (after := metrics.get(CONTINUED, 0.0)) > self._continued:
            self._continued = after
            _log.info(f"{self.title}: continues from a checkpoint, after {after:.0f} of {total}")
        now = time.monotonic()
        if _sink is not None:
            _sink(self, done, total, self._metrics)
        elif now - self._logged >= LOG_SECONDS:
            self._logged = now
            shown = {name: value for name, value in self._metrics.items() if name not in {"epoch", CONTINUED}}
            values = "".join(f", {name} {value:.4g}" for name, value in shown.items())
            _log.info(f"{self.title}: {int(done)}/{total} ({done / total:.0%}){values}")
        if now - self._shown >= UI_SECONDS:
            self._shown = now
            self._show(100 * done / total)

    def finished(self) -> None:
        """Show the work as complete. Work that failed or was stopped stays where it was."""
        if self._artifact is not None:
            self._show(100.0)

    def close(self) -> None:
        """Remove the bar."""
        if _sink is not None and self._started:
            _sink(self, 1, 1, {})

    def _show(self, percent: float) -> None:
        global _away_since
        if time.monotonic() - _away_since < AWAY_SECONDS:
            return
        if self._artifact is None:
            # Short stages never get here: their artifact would cost a request, and nobody would see it.
            shown = self._artifact = show(create_progress_artifact, progress=percent, description=self.title)
        else:
            own = self._artifact
            shown = show(update_progress_artifact, artifact_id=own, progress=percent, description=self.title)
        if shown is None:
            _away_since = time.monotonic()
