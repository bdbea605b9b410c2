"""What a command says at its end: its results, where they lie, or what went wrong."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cudd_core.errors import ArtifactDamaged, Cancelled, CuddError, UserError
from cudd_core.reporting.tables import shown_summary
from flows.quantities import in_bytes
from flows.result_files import write_json
from tasks.addresses import home_folder
from tasks.passwords import redact

USER_ERROR, OWN_ERROR, INTERRUPTED = 2, 1, 130

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_FULL = 20e6
"""Free bytes below which a disk counts as full."""

_BEGAN = time.monotonic()


def report_error(error: BaseException) -> int:
    """Print what went wrong, and what keeps running, and return the exit code."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    code = _say_what_happened(error, console)
    if code == OWN_ERROR:
        _say_what_is_full(console)
    _say_what_runs(console)
    return code


def _say_what_happened(error: BaseException, console: Console) -> int:
    if isinstance(error, KeyboardInterrupt | Cancelled):
        console.print("Stopped. The same command goes on from what is finished.")
        console.print(f"What is stored of it: {command('status')} lists runs.", markup=False)
        return INTERRUPTED
    console.print("[bold red]Error:[/]", end=" ")
    if isinstance(error, ArtifactDamaged):
        text = f"{str(error).rstrip('.')}. Run the recipe again: it makes that part anew."
    elif isinstance(error, CuddError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {redact(str(error))} (--debug shows where)"
    # A file's name in it may hold commands to the terminal.
    console.print(_CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text), markup=False)
    return USER_ERROR if isinstance(error, UserError) else OWN_ERROR


def _say_what_is_full(console: Console) -> None:
    """Say that the home's disk is full, if it is: servers that cannot write give other reasons, or none."""
    home = home_folder()
    with contextlib.suppress(OSError):
        if (free := shutil.disk_usage(home).free) < _FULL:
            console.print(
                f"The disk of {home} has {in_bytes(free)} left, which may be why. Free some space, or choose another "
                "home folder with CUDD_HOME.",
                markup=False,
            )


def finish(result: dict[str, Any], summary: Path | None, files: Sequence[tuple[str, Path]] = ()) -> None:
    """Write what a job found to `summary`, and say what it counted, where its results lie and how to look at them."""
    lines: list[tuple[str, object]] = []
    if dataset := result.get("dataset"):
        size = in_bytes(dataset["image_bytes"] + dataset["label_bytes"])
        what = f"{dataset['images']:,} images of {dataset['classes']:,} classes, {size} with labels"
        lines.append(("Set", f"{what}, digest {dataset['digest'][:16]}"))
    took = timedelta(seconds=round(time.monotonic() - _BEGAN))
    lines.append(("Tasks", f"{result['computed_tasks']} computed, {result['reused_tasks']} reused, in {took}"))
    lines.append(("Run", f"{result['mlflow_run_id']} (MLflow)"))
    lines += files
    if summary is not None:
        write_json(result, summary)
        lines.append(("Summary", summary))
    lines += _pages(result)
    console = Console()
    for name, text in lines:
        console.print(f"{name:8} {text}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"Look at it: {command('ui')}", soft_wrap=True, highlight=False, markup=False)
    _say_what_runs(console)


def _pages(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return where a run is shown: its page in Prefect and, if somebody serves it, in MLflow."""
    # Imported by what ends a run, not by every command.
    from flows.servers import mlflow_pages, mlflow_run_page

    lines = []
    if run := result.get("run_id"):
        from prefect.utilities.urls import url_for

        lines.append(("Prefect", redact(str(url_for("flow-run", obj_id=run)))))
    if pages := mlflow_pages(home_folder()):
        from tasks.store import Store

        run = result["mlflow_run_id"]
        # Its results count, whether or not its page can be named.
        with contextlib.suppress(CuddError):
            experiment = Store.from_environment().connect().pipelines.experiment_of(run)
            lines.append(("MLflow", mlflow_run_page(pages, experiment, run)))
    return lines


def _say_what_runs(console: Console) -> None:
    """Say how the home's Prefect server is ended, if it runs and this command had to do with servers."""
    servers = sys.modules.get("flows.servers")
    if servers is not None and servers.running_server(home_folder(), "prefect"):
        words = f"A Prefect server keeps running: {command('ui --stop')}"
        console.print(words, soft_wrap=True, highlight=False, markup=False)


def command(words: str) -> str:
    """Return what to type in this shell for `cudd WORDS` with the same home."""
    # Where the environment is not activated, the script is beside its Python.
    program = "cudd" if shutil.which("cudd") else shlex.quote(str(Path(sys.executable).with_name("cudd")))
    home = f"CUDD_HOME={shlex.quote(str(home_folder()))} " if os.environ.get("CUDD_HOME") else ""
    return f"{home}{program} {words}"


def accuracy_table(result: dict[str, Any]) -> Table:
    """Return the accuracies of a summary: the teacher, then each compared set by architecture, mean ± std over n."""
    table = Table(title=f"{result['recipe']}: test accuracy", title_justify="left")
    table.add_column("set")
    table.add_column("network")
    table.add_column("accuracy, %", justify="right")
    table.add_column("n", justify="right")
    for name, value in result["accuracy"].items():
        label = name.replace("_", " ")
        if isinstance(value, dict):
            for arch, spread in value.items():
                style = "bold" if name == "distilled" else None
                table.add_row(label, arch, shown_summary(spread), str(spread["n"]), style=style)
        else:
            table.add_row(label, "all of the data" if name.startswith("teacher") else "", f"{100 * value:.1f}", "1")
    return table
