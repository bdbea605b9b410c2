"""A relative path of SQLite is one file for everybody, and other addresses stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.addresses import home_folder, tracking_uri
from tasks.store import Store


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///x.db", "sqlite:///{here}/x.db"),
        ("sqlite:///sub/x.db?timeout=60", "sqlite:///{here}/sub/x.db?timeout=60"),
        ("sqlite+pysqlite:///x.db", "sqlite+pysqlite:///{here}/x.db"),
        *(
            (uri, uri)
            for uri in ("sqlite:////data/x.db", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?uri=true")
        ),
        *((uri, uri) for uri in ("http://team:5000", "postgresql+psycopg://me:secret@db/x", "databricks")),
    ],
)
def test_a_store_is_the_same_file_from_every_folder(
    uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    address = tracking_uri(tmp_path / "home")
    assert address == expected.format(here=tmp_path)
    assert Store.from_environment(tmp_path / "home").tracking_uri == address
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.chdir("/")
    assert tracking_uri(tmp_path / "home") == address


def test_a_relative_home_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDD_HOME", "home")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert home_folder() == tmp_path / "home"
    assert tracking_uri(home_folder()) == f"sqlite:///{tmp_path}/home/mlflow.db"
