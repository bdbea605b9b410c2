"""One Prefect server a session, and homes whose MLflow database is a copy of one that is made once."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

START_SECONDS = 240
"""How long the server may take to answer on a busy machine."""


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from prefect.settings import (
        PREFECT_HOME,
        PREFECT_LOGGING_TO_API_ENABLED,
        PREFECT_SERVER_ANALYTICS_ENABLED,
        temporary_settings,
    )
    from prefect.testing.utilities import prefect_test_harness

    own = {
        PREFECT_HOME: tmp_path_factory.mktemp("prefect"),
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
        PREFECT_LOGGING_TO_API_ENABLED: False,
    }
    with temporary_settings(own), prefect_test_harness(server_startup_timeout=START_SECONDS):
        yield


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables without an experiment: making them takes seconds, copying nothing."""
    with warnings.catch_warnings():
        # MLflow's use of SQLAlchemy, at import: "The ``noload`` loader strategy is deprecated".
        warnings.simplefilter("ignore", DeprecationWarning)
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    from tasks.mlflow_connection import make_database, quieten_mlflow

    quieten_mlflow()
    path = tmp_path_factory.mktemp("database") / "mlflow.db"
    make_database(path)
    return path


@pytest.fixture(scope="session")
def make_home(mlflow_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """New home folders, for CUDD_HOME."""

    def make(name: str) -> Path:
        home = tmp_path_factory.mktemp(name)
        shutil.copy(mlflow_database, home / "mlflow.db")
        return home

    return make


@pytest.fixture
def no_store_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine's owner has set must not lead a test to a store of theirs."""
    for name in ("MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT", "CUDD_SLOTS", "CUDD_HOME"):
        monkeypatch.delenv(name, raising=False)
