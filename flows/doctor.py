"""What this machine has and lacks: each check answers ok, warn or fail, and what to do."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.markup import escape
from rich.table import Table

from cudd_core.errors import ResourceError, StoreError
from flows.servers import ANSWER_SECONDS, answers, opened
from tasks import store_settings
from tasks.addresses import home_folder, is_database_server, is_server
from tasks.folders import check_home
from tasks.machine import core_count
from tasks.mlflow_connection import check_server
from tasks.passwords import redact

SHOWN = ("torch", "torchvision", "prefect", "mlflow", "timm", "pyarrow")
"""Packages that are listed even if all is well; others are listed only if they are missing or of a wrong version."""

LOW_DISK, VERY_LOW_DISK = 20e9, 2e9
APART = 20.0
"""Seconds by which two clocks may differ; a heartbeat that is 90 s old counts as none (flows.automations)."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def examine(home: Path | None = None) -> list[Check]:
    """Run all checks; none raises, starts a server or leaves anything but an empty home folder behind."""
    home = home or home_folder()
    checks: list[Check] = []
    examinations: dict[str, Callable[[], Iterator[Check]]] = {
        "python": _python,
        "packages": _packages,
        "device": _device,
        "cores": _cores,
        "CPU kernels": _kernels,
        "home": partial(_home, home),
        "disk": partial(_disk, home),
        "store": _tracking,
        "Prefect API": _prefect,
    }
    for name, examination in examinations.items():
        checks += _guarded(name, examination)
    return checks


def render(checks: list[Check]) -> Table:
    """Return the checks as a table for a terminal."""
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(title="cudd doctor", title_justify="left")
    for heading in ("check", "", "found", "what to do"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}"
        table.add_row(check.name, status, escape(check.found), escape(check.advice))
    return table


def _guarded(name: str, examination: Callable[[], Iterator[Check]]) -> list[Check]:
    try:
        return list(examination())
    except Exception as error:  # a doctor that dies of what it finds helps nobody
        return [Check(name, "fail", f"{type(error).__name__}: {error}", "Please report this.")]


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= (3, 14):
        yield Check("python", "warn", version, "constraints.txt was made for 3.11 to 3.13.")
    else:
        yield Check("python", "ok", version)


def _packages() -> Iterator[Check]:
    try:
        needed = [Requirement(text) for text in importlib.metadata.requires("cudd") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Check("packages", "warn", "cudd is not installed, so what it needs is not known", "make setup")
        return
    for need in needed:
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(need.name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(need.name, "fail", "not installed", f"make setup, or pip install '{need}'")
            continue
        if not need.specifier.contains(version, prereleases=True):
            yield Check(need.name, "fail", version, f"{need.specifier} is needed: make setup")
        elif need.name in SHOWN:
            yield Check(need.name, "ok", version)


def _device() -> Iterator[Check]:
    import torch

    if not torch.cuda.is_available():
        yield Check("device", "ok", "CPU only", "Recipes with compute.device=cuda need an NVIDIA GPU.")
        return
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        found = f"{torch.cuda.get_device_name(number)}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
        if free < 0.5 * total:
            yield Check(f"cuda:{number}", "warn", found, "Another program holds much of its memory (nvidia-smi).")
        else:
            yield Check(f"cuda:{number}", "ok", found)


def _cores() -> Iterator[Check]:
    cores = core_count()
    found = f"{cores} cores"
    if cores == 1:
        yield Check("cores", "warn", found, "Tasks will run one after another.")
    else:
        yield Check("cores", "ok", found)


def _kernels() -> Iterator[Check]:
    import torch

    from cudd_core.compute.cpu import batchnorm, winograd

    if winograd.is_built(torch.float32) and batchnorm.is_built(torch.float32):
        yield Check("CPU kernels", "ok", "compiled for this processor")
    else:
        advice = "Networks take twice as long here: install a C compiler (Debian: apt install gcc), or name one in CC."
        yield Check("CPU kernels", "warn", "not compiled", advice)


def _home(home: Path) -> Iterator[Check]:
    try:
        check_home(home)
    except ResourceError as error:
        yield Check("home", "fail", str(home), str(error))
    else:
        yield Check("home", "ok", str(home))


def _disk(home: Path) -> Iterator[Check]:
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    found = f"{free / 1e9:.0f} GB free"
    if free < VERY_LOW_DISK:
        yield Check("disk", "fail", found, f"Make room on the disk of {existing}, or point CUDD_HOME elsewhere.")
    elif free < LOW_DISK:
        yield Check("disk", "warn", found, "Enough for small data; `cudd plan RECIPE` says how much labels take.")
    else:
        yield Check("disk", "ok", found)


def _tracking() -> Iterator[Check]:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        yield Check("MLflow store", "ok", "SQLite under home")
        return
    advice = ""
    try:
        if not (is_server(uri) or is_database_server(uri) or uri.startswith("sqlite:")):
            raise StoreError("Set it to http://… or https://…, sqlite:///… or the address of a database server.")
        check_server(uri)
        if is_database_server(uri):
            with store_settings.database(uri, redact(uri)):
                pass
    except StoreError as error:
        advice = redact(str(error))
    yield Check("MLflow store", "fail" if advice else "ok", redact(uri), advice)


def _prefect() -> Iterator[Check]:
    url = os.environ.get("PREFECT_API_URL", "")
    if not url:
        yield Check("Prefect API", "ok", "a server of our own, started when needed")
    elif answers(health := url.rstrip("/") + "/health", ANSWER_SECONDS):
        yield Check("Prefect API", "ok", redact(url))
        ahead = _clock_ahead(health)
        if abs(ahead) > APART:
            words = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the Prefect server's"
            yield Check("clock", "warn", words, "Set both by NTP: the server takes runs with late heartbeats for dead.")
    else:
        advice = "The server of PREFECT_API_URL does not answer: start it, correct the address, or unset the variable."
        yield Check("Prefect API", "fail", redact(url), advice)


def _clock_ahead(url: str) -> float:
    """Return by how many seconds this machine's clock is ahead of a server's; 0 if the server does not say."""
    try:
        with opened(url, ANSWER_SECONDS) as response:
            return time.time() - parsedate_to_datetime(response.headers["Date"]).timestamp()
    except (OSError, ValueError, TypeError):
        return 0.0
