"""Where the environment puts the home folder and the store. Paths are absolute: servers run in other folders."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit


def home_folder() -> Path:
    """Return `$CUDD_HOME`, or ~/.cudd."""
    return Path(os.environ.get("CUDD_HOME") or "~/.cudd").expanduser().absolute()


SUMMARY_FILE = "summary.json"
"""The summary among a run's results and artifacts."""


def results_folder(home: Path, run: str) -> Path:
    """Return the folder with the report and summary of a run, given by its MLflow id; MLflow has a copy."""
    return home / "runs" / run


def tracking_uri(home: Path) -> str:
    """Return `$MLFLOW_TRACKING_URI`, or SQLite under `home`. Relative SQLite paths start at the current folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home / 'mlflow.db'}"
    scheme, _, rest = uri.partition(":///")
    path, mark, query = rest.partition("?")
    # Left as they are: other schemes, no path, an in-memory database, and SQLite's own URIs (file:…).
    if not scheme.startswith("sqlite") or path in ("", ":memory:") or path.startswith("file:"):
        return uri
    return f"{scheme}:///{Path(path).absolute()}{mark}{query}"


def artifact_root() -> str:
    """Return `$CUDD_ARTIFACT_ROOT`, or '' if it is not set. A relative path starts at the current folder."""
    root = os.environ.get("CUDD_ARTIFACT_ROOT", "")
    return root if not root or urlsplit(root).scheme else str(Path(root).expanduser().absolute())


def is_server(uri: str) -> bool:
    """Whether a tracking URI points to an MLflow server."""
    return uri.startswith(("http://", "https://"))


def is_database_server(uri: str) -> bool:
    """Whether a tracking URI points to a database server that is used without an MLflow server."""
    return uri.startswith(("postgresql", "mysql", "mssql"))
