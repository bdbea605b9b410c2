"""Real stores. Making MLflow's database takes seconds, so one is made per session and copied.

Servers are started once, for the first test that asks for one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.servers import S3, Missing, forget_clients, mlflow_server, postgres_server, s3_server
from tasks.store import Store

with warnings.catch_warnings():
    # MLflow's use of SQLAlchemy, at import: "The ``noload`` loader strategy is deprecated".
    warnings.simplefilter("ignore", DeprecationWarning)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


# They start S3, PostgreSQL and MLflow servers: minutes on a slow machine. CUDD_TEST_SERVERS=1 runs them too.
_SERVERS = ["test_stores.py", "test_concurrency.py", "test_faults.py"]
collect_ignore = [] if os.environ.get("CUDD_TEST_SERVERS") else _SERVERS


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by two threads at once, beside what a first start that was killed may leave."""
    home = tmp_path_factory.mktemp("template")
    (home / "mlflow.db.new").write_bytes(b"half a database")
    with ThreadPoolExecutor(2) as pool:
        for made in [
            pool.submit(Store(f"sqlite:///{home / 'mlflow.db'}", home / "cache", str(home / "artifacts")).connect)
            for _ in range(2)
        ]:
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


@pytest.fixture(scope="session")
def s3_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with _or_skip(), s3_server(tmp_path_factory.mktemp("s3") / "data") as server:
        yield server


@pytest.fixture
def s3(s3_service: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """An S3 server that boto3 and MLflow reach by the environment."""
    for name, value in s3_service.environment().items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield s3_service
    forget_clients()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[str], str]]:
    """Database name → URI; `mlflow` and `empty` exist."""
    with _or_skip(), postgres_server(("mlflow", "empty")) as uri:
        yield uri


@pytest.fixture(scope="session")
def tracking_server(s3_service: S3, template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A tracking server that passes artifacts on to S3, if it may choose where they go."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(template, folder / "mlflow.db")
    with mlflow_server(
        f"sqlite:///{folder / 'mlflow.db'}", f"{s3_service.uri}/proxied", folder / "log", s3_service.environment()
    ) as url:
        yield url


@contextlib.contextmanager
def _or_skip() -> Iterator[None]:
    try:
        yield
    except Missing as error:
        pytest.skip(str(error))
