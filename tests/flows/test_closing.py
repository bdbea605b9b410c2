"""What a command says at its end of the pages that show its run, and of what keeps running."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cudd_core.errors import ArtifactDamaged, ConfigError, CuddError, DataError, StoreError
from flows.closing import finish, report_error
from flows.servers import Server
from tasks.addresses import home_folder
from tasks.store import Store


@pytest.fixture
def result(
    make_home: Callable[[str], Path], no_store_variables: None, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The summary of a run in a home of its own."""
    monkeypatch.setenv("CUDD_HOME", str(make_home("closing")))
    pipelines = Store.from_environment().connect().pipelines
    run = pipelines.start("distill tiny", {}, {})
    pipelines.finish(run)
    return {"run_id": "0b0e-flow-run", "mlflow_run_id": run, "computed_tasks": 1, "reused_tasks": 2}


@pytest.fixture
def running(result: dict[str, Any]) -> Iterator[None]:
    """A process that the home remembers as its Prefect server."""
    home = home_folder()
    command = (sys.executable, "-c", "import time; time.sleep(600)", "--port", "4321")
    with subprocess.Popen(command) as process:
        server = Server(process.pid, 4321, "/", command, home=str(home))
        (home / "prefect").mkdir()
        (home / "prefect" / "server.json").write_text(json.dumps(asdict(server)))
        while not server.running():  # for a moment after it has begun, a process has no command line
            time.sleep(0.01)
        yield
        process.kill()


def test_a_run_s_pages_are_named(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefect.settings import PREFECT_UI_URL, temporary_settings

    with temporary_settings({PREFECT_UI_URL: "http://ann:secret@prefect:4200"}):
        finish(result, None)
        alone = capsys.readouterr().out
        monkeypatch.setenv("CUDD_MLFLOW_URL", "https://mlflow.example.org/")
        finish(result, None)
        served = capsys.readouterr().out
    for said in (alone, served):
        assert "Prefect  http://***@prefect:4200/runs/flow-run/0b0e-flow-run\n" in said
        assert "keeps running" not in said
    experiment = Store.from_environment().connect().pipelines.experiment_of(result["mlflow_run_id"])
    page = f"https://mlflow.example.org/#/experiments/{experiment}/runs/{result['mlflow_run_id']}"
    assert "MLflow  " not in alone and f"MLflow   {page}?" in served


@pytest.mark.usefixtures("running")
@pytest.mark.parametrize("error", [None, StoreError("the store is away"), KeyboardInterrupt()])
def test_a_server_that_keeps_running_is_named(
    error: BaseException | None, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    if error is None:
        finish(result, None)
        said = capsys.readouterr().out
    else:
        report_error(error)
        said = capsys.readouterr().err
    assert said.splitlines()[-1].startswith("A Prefect server keeps running: ")
    assert said.endswith(" ui --stop\n")


def test_a_file_s_name_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in (DataError, ArtifactDamaged, OSError):
        report_error(kind("a\x1b]0;title\x07\x1b[2J\x9b2J\r.png: no image\n\tagain"))
        shown = capsys.readouterr().err
        assert "a\\x1b]0;title\\x07\\x1b[2J\\x9b2J\\x0d.png: no image\n" in shown and "\x1b" not in shown


def test_a_full_disk_is_named_behind_another_error(
    result: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A Prefect server that cannot write answers 500, or does not start, and its log is empty."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=12_000))
    report_error(CuddError("The Prefect server ended while starting."))
    assert f"The disk of {home_folder()} has 12 kB left" in capsys.readouterr().err
    report_error(ConfigError("--seeds: no number."))
    assert "left" not in capsys.readouterr().err
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**9))
    report_error(CuddError("The Prefect server ended while starting."))
    assert "left" not in capsys.readouterr().err
