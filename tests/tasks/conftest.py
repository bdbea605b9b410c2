"""A real MLflow store on SQLite. Making its database takes seconds, so one is made per session and copied."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.store import Store

with warnings.catch_warnings():
    # MLflow's use of SQLAlchemy, at import: "The ``noload`` loader strategy is deprecated".
    warnings.simplefilter("ignore", DeprecationWarning)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by two threads at once, beside what a first start that was killed may leave."""
    home = tmp_path_factory.mktemp("template")
    (home / "mlflow.db.new").write_bytes(b"half a database")
    with ThreadPoolExecutor(2) as pool:
        for made in [pool.submit(Store(f"sqlite:///{home / 'mlflow.db'}", home / "cache").connect) for _ in range(2)]:
            made.result()
    return home / "mlflow.db"


@pytest.fixture
def make_store(template: Path, tmp_path: Path) -> Callable[..., Store]:
    """Stores of one database and artifact root; `machine` names a home with a cache of its own."""
    shutil.copy(template, tmp_path / "mlflow.db")

    def make(machine: str = "home", *, copy_artifacts: bool = False) -> Store:
        return Store(
            f"sqlite:///{tmp_path / 'mlflow.db'}",
            tmp_path / machine / "cache",
            str(tmp_path / "artifacts"),
            # The template's own experiments have no artifact root.
            experiment="stages",
            copy_artifacts=copy_artifacts,
        )

    return make


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store()
