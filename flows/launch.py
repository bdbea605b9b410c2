"""A run from a shell: the server, the console, the flow, and where its report lies."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cudd_core.errors import CuddError
from flows.servers import ensure_prefect_server, launch_prefect_server, own_prefect_server
from tasks.addresses import results_folder
from tasks.folders import check_home

if TYPE_CHECKING:  # it imports Prefect, which reads the environment then
    from tasks.progress import Reporter, Sink

_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Stage progress and the store's warnings go to the run's log in the Prefect UI as well.
    "PREFECT_LOGGING_EXTRA_LOGGERS": "cudd",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}


def run_flow(job: str, parameters: Mapping[str, Any], home: Path, *, debug: bool = False) -> dict[str, Any]:
    """Run the flow `flows.JOB.JOB` here and return its summary. The run's files are in `home`/runs/MLFLOW_RUN.

    Raises:
        ResourceError: the home folder cannot be created or written.
    """
    check_home(home)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not debug:
        # Prefect's own lines and tracebacks stay in its UI; the console shows progress and one clear error.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_HOME", str(home / "prefect"))
    with _starting():
        own = not os.environ.get("PREFECT_API_URL")
        address = launch_prefect_server(home) if own else ensure_prefect_server(home)
        # Prefect reads the address when it is imported; a server of our own starts while this process imports.
        os.environ["PREFECT_API_URL"] = address
        import tasks.progress
        from flows.cancel import cancelled_by_interrupt, keep_cancelled

        flow = getattr(importlib.import_module(f"flows.{job}"), job).with_options(on_crashed=[keep_cancelled])
        if own and own_prefect_server(home) != address:
            raise CuddError("The Prefect server's port was taken while it started. Run the same command again.")
    with _console() as draw, cancelled_by_interrupt():
        tasks.progress.draw_on(draw)
        try:
            summary: dict[str, Any] = flow(**parameters)
        finally:
            tasks.progress.draw_on(None)
    return summary


def keep_report(summary: dict[str, Any], home: Path) -> list[tuple[str, Path]]:
    """Leave a copy of a distillation's report where it is easy to find, until the next one; return what and where.

    The summary names the files of the run, which stay.
    """
    folder = results_folder(home, summary["mlflow_run_id"])
    latest = []
    for key, name in (("report", "report.html"), ("picture", "report.png")):
        summary[key] = str(folder / name)
        copy = home / f".{name}.{os.getpid()}"
        shutil.copyfile(folder / name, copy)
        copy.replace(home / name)
        latest.append((key.capitalize(), home / name))
    return latest


def _starting() -> AbstractContextManager[object]:
    """Say that something goes on before the first stage does."""
    console = Console(stderr=True)
    text = "starting: seconds, half a minute in a new home"
    if console.is_terminal:
        return console.status(text)
    console.print(f"{datetime.now():%H:%M:%S} {text}", highlight=False)
    return contextlib.nullcontext()


@contextlib.contextmanager
def _console() -> Iterator[Sink | None]:
    """Show bars in a terminal, with lines above them of what bars do not show, and plain lines elsewhere."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    lines.setLevel(logging.INFO)
    own = logging.getLogger("cudd")
    own.addHandler(lines)
    try:
        if not sys.stderr.isatty():
            yield None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            lines.setStream(sys.stderr)  # rich's by now, which writes above the bars
            yield _Bars(bars)
    finally:
        own.removeHandler(lines)


class _Bars:
    """One bar for every stage that is computing; it disappears when the stage is done.

    Titles do not tell stages apart: two methods synthesise the same slices side by side.
    """

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.ids: dict[Reporter, TaskID] = {}
        self.lock = threading.Lock()

    def __call__(self, reporter: Reporter, done: float, total: int, metrics: Mapping[str, float]) -> None:
        with self.lock:
            if reporter not in self.ids:
                self.ids[reporter] = self.bars.add_task(reporter.title, total=total)
            self.bars.update(self.ids[reporter], completed=done, total=total)
            if done >= total:
                self.bars.remove_task(self.ids.pop(reporter))
