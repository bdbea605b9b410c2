"""Where the home folder and the store are, as the environment says: absolute, since servers work in other folders."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit


def home_folder() -> Path:
    """Return `$CUDD_HOME`, or ~/.cudd."""
    return Path(os.environ.get("CUDD_HOME") or "~/.cudd").expanduser().absolute()


def tracking_uri(home: Path) -> str:
    """Return `$MLFLOW_TRACKING_URI`, or SQLite under `home`. A relative path of SQLite starts at the current folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    scheme, _, rest = uri.partition(":///")
    path, mark, query = rest.partition("?")
    # What is left alone: no path, a database in memory, and SQLite's own URIs (file:…).
    if not scheme.startswith("sqlite") or path in ("", ":memory:") or path.startswith("file:"):
        return uri
    return f"{scheme}:///{Path(path).absolute()}{mark}{query}"


def artifact_root() -> str:
    """Return `$CUDD_ARTIFACT_ROOT`, '' if it is not set. A relative path starts at the current folder."""
    root = os.environ.get("CUDD_ARTIFACT_ROOT", "")
    return root if not root or urlsplit(root).scheme else str(Path(root).expanduser().absolute())


def is_server(uri: str) -> bool:
    """Whether a tracking URI is that of an MLflow server."""
    return uri.startswith(("http://", "https://"))


def is_database_server(uri: str) -> bool:
    """Whether a tracking URI is that of a database behind a server of its own, without an MLflow server."""
    return uri.startswith(("postgresql", "mysql", "mssql"))
