"""`cudd doctor`: what is lacking is found, with what to do, and nothing it says shows a password."""

from __future__ import annotations

import importlib.metadata
import io
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from cudd_core.compute.cpu import compiled
from flows import doctor
from flows.doctor import Check, examine, render
from tests.flows.stand_ins import api

pytestmark = pytest.mark.usefixtures("no_store_variables")


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Check]:
    """The named check of a doctor that looks at a home in the test's folder."""
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return lambda name: next(check for check in examine(tmp_path / "home") if check.name == name)


def test_a_machine_that_the_tests_run_on_is_well(found: Callable[[str], Check], tmp_path: Path) -> None:
    for name in (*doctor.SHOWN, "home", "MLflow store", "Prefect API"):
        assert found(name).status == "ok", found(name)
    assert (tmp_path / "home").is_dir() and not any((tmp_path / "home").iterdir()), "it starts and writes nothing"


@pytest.mark.parametrize(
    ("variable", "address", "name"),
    [
        ("MLFLOW_TRACKING_URI", "http://ann:hunter2@127.0.0.1:9/api", "MLflow store"),
        ("MLFLOW_TRACKING_URI", "postgresql+psycopg://ann:hunter2@127.0.0.1:9/mlflow", "MLflow store"),
        ("PREFECT_API_URL", "http://ann:hunter2@127.0.0.1:9/api", "Prefect API"),
    ],
)
def test_servers_that_do_not_answer(
    found: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch, variable: str, address: str, name: str
) -> None:
    monkeypatch.setenv(variable, address)
    check = found(name)
    assert check.status == "fail" and variable in check.advice
    assert "127.0.0.1:9" in check.found and "hunter2" not in str(check)


@pytest.mark.parametrize(("ahead", "words"), [(0, ""), (100, "ahead of"), (-100, "behind")])
def test_clocks_that_are_apart(
    found: Callable[[str], Check], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float, words: str
) -> None:
    monkeypatch.setattr(doctor, "time", SimpleNamespace(time=lambda: time.time() + ahead))
    with api(200) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        checks = {check.name: check for check in examine(tmp_path / "home")}
    assert checks["Prefect API"].status == "ok"
    assert words in checks["clock"].found if words else "clock" not in checks


def test_a_store_that_is_none(found: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("databricks", "file:///tmp/mlruns", "/tmp/mlruns"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        check = found("MLflow store")
        assert check.status == "fail" and "sqlite:///" in check.advice, address


def test_a_machine_without_a_compiler(found: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    compiled.library.cache_clear()
    try:
        check = found("CPU kernels")
    finally:
        compiled.library.cache_clear()
    assert check.status == "warn" and "gcc" in check.advice


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (home,) = [check for check in examine(tmp_path / "file" / "home") if check.name == "home"]
    assert home.status == "fail" and "CUDD_HOME" in home.advice


@pytest.mark.parametrize(("free", "status"), [(1e9, "fail"), (5e9, "warn"), (1e12, "ok")])
def test_the_disk(found: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch, free: float, status: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert found("disk").status == status


def test_packages_that_are_old_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=99.1", "no-such-package>=1", "fastapi<0.1", "numpy>=1", 'nor-this>=1; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needed)
    checks = {check.name: check for check in examine(tmp_path)}
    assert (checks["torch"].status, checks["torch"].advice) == ("fail", ">=99.1 is needed: make setup")
    assert checks["no-such-package"].found == "not installed"
    assert checks["fastapi"].advice == "<0.1 is needed: make setup"
    assert not {"numpy", "nor-this"} & checks.keys()


def test_a_check_that_breaks_is_told_like_the_others(
    found: Callable[[str], Check], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OSError("[red]a driver")

    monkeypatch.setattr(doctor, "_python", broken)
    assert found("python").status == "fail"
    page = io.StringIO()
    Console(width=200, file=page).print(render([found("python")]))
    assert "[red]a driver" in page.getvalue()
