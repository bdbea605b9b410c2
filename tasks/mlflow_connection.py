"""The connection to MLflow: its server or database (created if missing), our experiments, and where their files go.

A wrong address, password, bucket or folder is reported within seconds, before anything is computed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shlex
import sqlite3
import threading
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cudd_core.errors import StoreError
from tasks import store_settings
from tasks.addresses import is_database_server, is_server
from tasks.folders import blame, check_there, check_writable, local_folder, writing
from tasks.mlflow_calls import Calls, Gone
from tasks.passwords import redact, shows_password

if TYPE_CHECKING:
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

_SERVER_SECONDS = 10

_log = logging.getLogger("cudd.store")


class Connection:
    """A tracking server or database. Cheap to create; connects on first use, from any thread.

    `tracking_uri`: MLflow's. `artifact_root`: where new experiments keep artifacts, a URI or a folder; None leaves it
    to the tracking server. `needed`: experiments to open on connecting; the first one's artifact location is checked
    too. `folders`: local folders that must be writable.

    `call`: makes every request. `experiments`: name → id of the experiments opened so far.
    """

    def __init__(
        self, tracking_uri: str, artifact_root: str | None, needed: Sequence[str], folders: Sequence[Path]
    ) -> None:
        self.tracking_uri = tracking_uri
        self.call = Calls(tracking_uri)
        self.experiments: dict[str, str] = {}
        self._artifact_root = artifact_root
        self.artifacts_folder: Path | None = None
        self._needed = needed
        self._folders = folders
        self._client: MlflowClient | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, connected on first use. Raises like `open`."""
        return self.open()

    def open(self) -> MlflowClient:
        """Connect unless connected, create a missing database and missing experiments, and return MLflow's client.

        Raises:
            StoreError: the tracking server or database cannot be reached or refuses.
            ResourceError: a local folder cannot be written.
        """
        with self._lock:
            if self._client is not None:
                return self._client
            for folder in self._folders:
                check_writable(folder)
            quieten_mlflow()
            store_settings.configure_mlflow()
            database = self._sqlite_path()
            if database is not None:
                check_writable(database.parent)
                _check_sqlite(database)
            else:
                check_server(self.tracking_uri)
            from mlflow.tracking import MlflowClient

            # MLflow's own migrations are not safe when two processes start on a new database at once.
            with FileLock(f"{database}.lock") if database is not None else self._server_database():
                if database is not None and not database.exists():
                    self.call("making a new database", lambda: make_database(database))
                client = self.call("connecting", lambda: MlflowClient(self.tracking_uri))
                for name in self._needed:
                    self.experiments[name] = self._experiment_id(client, name)
                if database is not None:
                    self.call("making an index", lambda: index_tags(database))
                self._check_artifacts(client)
                self._client = client
                self.call.reached = True
            return client

    def open_experiment(self, name: str) -> str:
        """Return the id of an experiment, creating it if it does not exist. Raises like `open`."""
        client = self.client
        with self._lock:
            if name not in self.experiments:
                self.experiments[name] = self._experiment_id(client, name)
            return self.experiments[name]

    def _experiment_id(self, client: MlflowClient, name: str) -> str:
        doing = f"opening experiment {name}"
        found: Experiment | None = self.call(doing, lambda: client.get_experiment_by_name(name))
        location = artifact_location(self._artifact_root, name)
        if found is None:
            if location is not None:
                # An experiment keeps its location for good: made with a wrong bucket, it could never be used.
                self._look_at(location)
            try:
                # With this tag, MLflow's pages open in the view for model training, not for language-model evaluation.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                return str(self.call(doing, lambda: client.create_experiment(name, location, tags=kind)))
            except StoreError:
                # Somebody else may have created it in the meantime.
                found = self.call(doing, lambda: client.get_experiment_by_name(name))
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            # Without the address, MLflow's commands make an empty store in the current folder.
            mlflow = f"MLFLOW_TRACKING_URI={shlex.quote(self.call.display_uri)} mlflow"
            raise StoreError(
                f"MLflow store {self.call.display_uri}: experiment {name!r} was deleted. Bring it back:\n\n"
                f"    {mlflow} experiments restore --experiment-id {found.experiment_id}\n\n"
                "Or remove it, its runs and their files for good:\n\n"
                f"    {mlflow} gc --experiment-ids {found.experiment_id}"
            )
        if location is not None and found.artifact_location.rstrip("/") != location:
            _log.warning(
                "experiment %s keeps its artifacts in %s since it was made; CUDD_ARTIFACT_ROOT does not move it",
                *(name, redact(found.artifact_location)),
            )
        return str(found.experiment_id)

    def _check_artifacts(self, client: MlflowClient) -> None:
        """Detect a wrong bucket, key or endpoint, or a share that is not mounted, before anything runs."""
        doing, number = "looking at the artifact location", self.experiments[self._needed[0]]
        location = str(self.call(doing, lambda: client.get_experiment(number)).artifact_location)
        folder = self.artifacts_folder = local_folder(location)
        if folder is not None and not folder.is_dir():
            finished = functools.partial(client.search_runs, [number], "attributes.status = 'FINISHED'", max_results=1)
            if self.call(doing, finished):
                check_there(folder)
        self._look_at(location)

    def _look_at(self, location: str) -> None:
        """Check that artifacts can be kept there; a local folder is made."""
        from mlflow.artifacts import list_artifacts

        doing = f"looking at the artifact location {redact(location)}"
        if location.startswith("s3:"):
            self.call(doing, store_settings.configure_s3)
        folder = local_folder(location)
        if folder is not None:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            return
        # There is no such folder; whoever has access learns just that, anyone else gets an error.
        probe = f"{location.rstrip('/')}/.cudd"
        try:
            self.call(doing, lambda: list_artifacts(artifact_uri=probe, tracking_uri=self.tracking_uri))
        except Gone as error:
            raise StoreError(f"{error}. Create it, or correct CUDD_ARTIFACT_ROOT.") from error.__cause__

    def _sqlite_path(self) -> Path | None:
        prefix, _, path = self.tracking_uri.partition(":///")
        return Path(path.partition("?")[0]).absolute() if prefix.startswith("sqlite") and path else None

    def _server_database(self) -> contextlib.AbstractContextManager[None]:
        """Check a database server that is used without an MLflow server, and keep other first starts out."""
        if not is_database_server(self.tracking_uri):
            return contextlib.nullcontext()
        return store_settings.database(self.tracking_uri, self.call.display_uri)


def check_server(uri: str) -> None:
    """Raise StoreError within seconds if a server does not answer; MLflow itself would retry for minutes."""
    if not is_server(uri):
        return
    import requests

    cause: Exception | None = None
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=_SERVER_SECONDS)
        if answer.status_code < 500:  # from 500 on: a proxy in front of a server that is down
            return
        said = f"answers {answer.status_code} ({answer.reason})"
    except requests.exceptions.SSLError:
        return  # it is for MLflow's client to decide which certificates to trust
    except (requests.RequestException, ValueError) as error:
        # Prefect logs an error together with its causes.
        said, cause = "does not answer", None if shows_password(error) else error
    raise StoreError(
        f"MLflow tracking server {redact(uri)} {said}. Start it, correct MLFLOW_TRACKING_URI, or unset it to use a "
        "local database."
    ) from cause


def artifact_location(root: str | None, experiment: str) -> str | None:
    """Return the URI below which a new experiment keeps artifacts; None leaves it to the tracking server."""
    if root is None:
        return None
    if urllib.parse.urlsplit(root).scheme:
        return f"{root.rstrip('/')}/{experiment}"
    return (Path(root).expanduser().absolute() / experiment).as_uri()


def make_database(path: Path) -> None:
    """Create MLflow's database under another name, then rename it: one half made when killed would never open."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    unfinished = path.with_name(path.name + ".new")
    for leftover in (unfinished, unfinished.with_name(unfinished.name + "-journal")):
        leftover.unlink(missing_ok=True)
    # The default experiment, which nothing here uses, would otherwise point at ./mlruns.
    open_store: Any = SqlAlchemyStore
    open_store(f"sqlite:///{unfinished}", (path.parent / "mlruns").as_uri()).engine.dispose()
    os.replace(unfinished, path)


def index_tags(database: Path) -> None:
    """Let the database find a tag by its value, unless it can already: stage outputs are looked up by that of a tag.

    MLflow's own indices lead to all runs with a tag of that name, so a lookup would take longer with every stored run.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE INDEX IF NOT EXISTS cudd_tags_by_value ON tags (key, value)")


def quieten_mlflow() -> None:
    """Silence MLflow's usage statistics, progress bars, links and migration messages; errors are raised, not logged."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.store.artifact.artifact_repo"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").addFilter(_not_a_database_error)


def _not_a_database_error(record: logging.LogRecord) -> bool:
    # MLflow logs these with a traceback even if the request is then repeated successfully.
    return not str(record.msg).startswith("SQLAlchemy database error")


def _check_sqlite(path: Path) -> None:
    try:
        with path.open("rb") as stream:
            head = stream.read(16)
    except FileNotFoundError:
        return
    except OSError as error:
        blame(path, error)
    if head and head != b"SQLite format 3\0":
        raise StoreError(f"{path} is not a SQLite database. Move it away, or set MLFLOW_TRACKING_URI or CUDD_HOME.")
