"""One Prefect server and one MLflow server of our own under the home folder: started when needed, then reused.

A server is remembered in HOME/prefect/server.json (HOME/mlflow/server.json) as pid, port, command, home and what it
serves. It is used again while it runs and serves what is asked for, and ended only if the process with that pid still
is that server. A copy of a home holds the original's records: servers of another home are let be. Two starters wait for
each other. While a server lives it holds the lock of HOME/prefect/alive, by which others that share the home, from
another machine or container, know of it: two servers on one SQLite file would ruin it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from http.client import HTTPResponse
from pathlib import Path

from filelock import FileLock

from cudd_core.errors import CuddError, UserError
from tasks.addresses import artifact_root, is_server, tracking_uri
from tasks.folders import check_home
from tasks.mlflow_connection import check_server
from tasks.passwords import redact

HOST = "127.0.0.1"

PREFECT_HEALTH, MLFLOW_HEALTH = "/api/ready", "/health"

_PORT = "{port}"
"""Stands for the port in a server's environment until one is found."""

_AGAINST_WEB_SITES = {
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{_PORT},http://localhost:{_PORT}",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
}
"""Prefect's own variables, set unless the environment has them."""

START_SECONDS = 240.0
"""How long a server may take to answer: a first start makes the database, and a busy machine is slow."""

END_SECONDS = 10.0
"""How long a server may take to end before it is killed."""

ANSWER_SECONDS = 10.0
"""How long a server that somebody else runs may take to answer: it may be busy or far away."""

_log = logging.getLogger("cudd.servers")


@dataclass(frozen=True)
class Server:
    """A background server that this software started.

    `serves`: of MLflow's, a hash of the store's address. `home`: whose it is; '' in records of older versions.
    """

    pid: int
    port: int
    health: str
    command: tuple[str, ...]
    serves: str = ""
    home: str = ""

    @property
    def url(self) -> str:
        """The address of its web page."""
        return f"http://{HOST}:{self.port}"

    def healthy(self) -> bool:
        """Return whether it answers now."""
        return answers(self.url + self.health)

    def running(self) -> bool:
        """Return whether the recorded process still is this server (a pid may have been given to another)."""
        for child in _children:
            # Its command line reads empty for a moment after it started.
            if child.pid == self.pid:
                return child.poll() is None
        found = _command_line(self.pid)
        return f"--port {self.port}" in found and all(word in found for word in self.command[:3])

    def belongs_to(self, home: Path) -> bool:
        """Return whether it was started for this home, under whatever name."""
        return not self.home or Path(self.home).resolve() == home.resolve()


def launch_prefect_server(home: Path) -> str:
    """Return the API's address without waiting for it to answer: a server takes seconds to start, imports do too.

    `PREFECT_API_URL` is returned as it is if it is set.
    """
    if configured := os.environ.get("PREFECT_API_URL"):
        return configured
    return _launch(home / "prefect", _prefect_environment(home)).url + "/api"


def ensure_prefect_server(home: Path) -> str:
    """Return the address of a Prefect API that answers: `PREFECT_API_URL`, or a server of our own.

    Raises:
        UserError: nobody answers at `PREFECT_API_URL`.
        CuddError: the server died or did not answer in time; the message says where its log is.
    """
    if configured := os.environ.get("PREFECT_API_URL"):
        if not answers(configured.rstrip("/") + "/health", ANSWER_SECONDS):
            raise UserError(
                f"PREFECT_API_URL: no Prefect server answers at {redact(configured)}. Start it, correct the address, "
                "or unset the variable to use a server of this machine, which is started when needed."
            )
        return configured
    return own_prefect_server(home)


def own_prefect_server(home: Path) -> str:
    """Return the API's address of a server of our own that answers. Raises CuddError as `ensure_prefect_server`."""
    return _ensure(home / "prefect", _prefect_environment(home)).url + "/api"


def ensure_servers(home: Path) -> tuple[str, str]:
    """Return the addresses of a Prefect API and of MLflow's pages; both servers start at the same time.

    Raises:
        ResourceError: a home that cannot be made or written.
        UserError, CuddError: as `ensure_prefect_server` and `ensure_mlflow_server`.
    """
    check_home(home)
    store = tracking_uri(home)
    launch_prefect_server(home)
    if not is_server(store):
        _launch(home / "mlflow", _mlflow_environment(home, store))
    return ensure_prefect_server(home), ensure_mlflow_server(home, store)


def ensure_mlflow_server(home: Path, store: str) -> str:
    """Return the address of MLflow's pages for `store`, which is returned as it is if it is a server already.

    Raises:
        StoreError: MLFLOW_TRACKING_URI is a server that does not answer.
        CuddError: the server died or did not answer in time; the message says where its log is.
    """
    if is_server(store):
        check_server(store)
        return store
    return _ensure(home / "mlflow", _mlflow_environment(home, store)).url


def mlflow_pages(home: Path) -> str | None:
    """Return the address of MLflow's pages for a browser: `CUDD_MLFLOW_URL`, else of the store if it is a server, else
    of one of our own that serves it now; start none.
    """
    if shown := os.environ.get("CUDD_MLFLOW_URL"):
        return redact(shown.rstrip("/"))
    store = tracking_uri(home)
    if is_server(store):
        return redact(store)
    server = running_server(home, "mlflow")
    return server.url if server and server.serves == _served(_mlflow_environment(home, store)) else None


def mlflow_run_page(pages: str, experiment: str, run: str) -> str:
    """Return the address of a run's page below MLflow's `pages`."""
    # Without the workflow type, MLflow shows the pages for language models to a browser that is new to it.
    return f"{pages}/#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"


def mlflow_file(pages: str, run: str, name: str) -> str:
    """Return the address of a file among a run's artifacts."""
    return f"{pages}/get-artifact?path={name}&run_uuid={run}"


def running_server(home: Path, name: str) -> Server | None:
    """Return the server `prefect` or `mlflow` that was started for `home`, if it runs now."""
    server = _recorded(home / name)
    return server if server is not None and server.belongs_to(home) and server.running() else None


def revive_server(home: Path, name: str) -> bool:
    """Start the server `prefect` or `mlflow` of `home` again, on its port, if it died unasked; return whether it had.

    Raises:
        UserError: one runs elsewhere.
    """
    server = _recorded(home / name)
    if server is None or not server.belongs_to(home) or server.running():
        return False
    prefect = name == "prefect"
    _launch(home / name, _prefect_environment(home) if prefect else _mlflow_environment(home, tracking_uri(home)))
    return True


def stop_servers(home: Path) -> list[str]:
    """End the servers that were started under `home`; return what was ended, in words."""
    ended = []
    for name in ("prefect", "mlflow"):
        folder = home / name
        if not (folder / "server.json").exists():
            continue
        with _lock(folder):
            server = _recorded(folder)
            if server is not None and server.running() and _is_ours(server, folder):
                _end(server)
                ended.append(f"{name} (port {server.port})")
            elif _lives_elsewhere(folder):
                _log.warning("%s", _elsewhere(folder))
                continue
            (folder / "server.json").unlink(missing_ok=True)
    return ended


def opened(url: str, timeout: float) -> HTTPResponse:
    """Return what an HTTP GET of `url` is answered; user and password in it are left out. Raises as `urlopen`."""
    parts = urllib.parse.urlsplit(url)
    # With a user and password in it, urllib would look for a host of that name.
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    response: HTTPResponse = urllib.request.urlopen(bare, timeout=timeout)
    return response


def answers(url: str, timeout: float = 2.0) -> bool:
    """Return whether an HTTP GET of `url` succeeds, or is asked for a password."""
    try:
        with opened(url, timeout) as response:
            return bool(response.status == 200)
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except urllib.error.URLError as error:
        # Which certificates are trusted is for Prefect's and MLflow's clients to say.
        return isinstance(error.reason, ssl.SSLCertVerificationError)
    except (OSError, ValueError, http.client.HTTPException):
        return False


def _prefect_command(port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port))


def _prefect_environment(home: Path) -> Mapping[str, str]:
    folder = home / "prefect"
    return {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        # The pages ask the API at port 4200 unless told; `_start` fills in the port it found.
        "PREFECT_UI_API_URL": f"http://{HOST}:{_PORT}/api",
        # By default, any web site that is open in a browser on this machine can call the API and read its answers, and
        # so make a worker run anything; without a token it could still send what it cannot read the answer to.
        **{name: os.environ.get(name) or value for name, value in _AGAINST_WEB_SITES.items()},
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        # In memory, a restart would forget who holds a limit that a team has set.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        # A run that died while the server was away, as with the whole machine, is still noticed when it is back; by
        # default its last heartbeat is forgotten after a minute.
        "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",
    }


def _mlflow_command(port: int) -> tuple[str, ...]:
    return (sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1")


def _mlflow_environment(home: Path, store: str) -> Mapping[str, str]:
    """Settings of the server. The store's address may hold a password: it must not be on a command line."""
    return {
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifact_root() or str(home / "artifacts"),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _lock(folder: Path) -> FileLock:
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / "server.lock", timeout=START_SECONDS)


def _launch(folder: Path, environment: Mapping[str, str]) -> Server:
    """Return the recorded server if it runs and serves the same, otherwise a new one that may not answer yet."""
    _leave_out_of_proxies()
    with _lock(folder):
        server = _recorded(folder)
        if server is not None and server.running():
            if not _is_ours(server, folder):
                # It may not listen yet, so that its port would look free.
                (folder / "port").unlink(missing_ok=True)
            elif server.serves == _served(environment):
                return server
            else:
                _end(server)
        elif _lives_elsewhere(folder):
            raise UserError(_elsewhere(folder))
        return _start(folder, environment)


def _leave_out_of_proxies() -> None:
    """Reach this machine without the proxy that the environment may name, which cannot: from our processes too."""
    named = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host for part in named.split(",") if (host := part.strip())]
    if "*" not in hosts:
        # Of the two spellings most programs read the first alone, others the second.
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, HOST]))


def _is_ours(server: Server, folder: Path) -> bool:
    """Return whether a running server was started for this home; if not, say that it is left alone."""
    ours = server.belongs_to(folder.parent)
    if not ours:
        _log.warning(
            "%s on port %d is left alone: it was started for %s, not for %s. If that folder was moved here, end it "
            "with `kill %d`.",
            *(_name(folder), server.port, server.home, folder.parent, server.pid),
        )
    return ours


def _ensure(folder: Path, environment: Mapping[str, str]) -> Server:
    deadline = time.monotonic() + START_SECONDS
    server = _launch(folder, environment)
    restarts = 2
    while not server.healthy():
        if not server.running():
            if restarts == 0:
                raise CuddError(f"{_name(folder)} ended while starting. Its log: {folder / 'server.log'}")
            restarts -= 1  # most likely another program took the port in between
            server = _launch(folder, environment)
        elif time.monotonic() > deadline:
            raise CuddError(
                f"{_name(folder)} did not answer on {server.url} within {START_SECONDS:.0f} s. "
                f"Its log: {folder / 'server.log'}. `cudd ui --stop` ends it."
            )
        time.sleep(0.1)
    return server


def _start(folder: Path, environment: Mapping[str, str]) -> Server:
    port = _choose_port(folder / "port")
    words, health = {
        "prefect": (_prefect_command(port), PREFECT_HEALTH),
        "mlflow": (_mlflow_command(port), MLFLOW_HEALTH),
    }[folder.name]
    with (folder / "server.log").open("wb") as log, (folder / "alive").open("wb") as alive:
        # The process inherits the open file, and with it the lock.
        with contextlib.suppress(OSError):
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **{name: value.replace(_PORT, str(port)) for name, value in environment.items()}},
            start_new_session=True,
            pass_fds=(alive.fileno(),),
            umask=0o077,  # its database holds what people keep in Prefect's blocks, and the key to it
        )
    _children.append(process)
    server = Server(process.pid, port, health, words, _served(environment), str(folder.parent.resolve()))
    partial = folder / "server.json.partial"
    partial.write_text(json.dumps(asdict(server), indent=1))
    partial.replace(folder / "server.json")
    return server


def _lives_elsewhere(folder: Path) -> bool:
    """Return whether a server of this folder holds its lock, though none runs where this process can see it."""
    try:
        with (folder / "alive").open("r+b") as alive:  # NFS locks what can be written
            fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def _elsewhere(folder: Path) -> str:
    variable = {"prefect": "PREFECT_API_URL", "mlflow": "MLFLOW_TRACKING_URI"}[folder.name]
    return (
        f"{_name(folder)} of {folder.parent} runs where this process does not see it, on another machine or in another "
        f"container that shares the folder. Set {variable} to an address of it that can be reached from here, end it "
        "there, or choose another home folder with CUDD_HOME."
    )


def _served(environment: Mapping[str, str]) -> str:
    """Return what tells servers of different stores apart: a hash, since the address may hold a password."""
    store = environment.get("MLFLOW_BACKEND_STORE_URI", "")
    return hashlib.sha256(store.encode()).hexdigest()[:16] if store else ""


def _choose_port(remembered: Path) -> int:
    """Return the port of the last time, so that bookmarks and the links in old runs go on working, or a free one."""
    ports = [0]
    with contextlib.suppress(OSError, ValueError):
        ports.insert(0, int(remembered.read_text()))
    for port in ports:
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            # As servers do: connections of the last one, still closing, do not make the port taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            port = int(probe.getsockname()[1])
            remembered.write_text(str(port))
            return port
    raise CuddError(f"No port of {HOST} is free.")


_children: list[subprocess.Popen[bytes]] = []
"""Servers this process started: polled, so that one that died is no zombie that looks alive."""


def _recorded(folder: Path) -> Server | None:
    try:
        fields = json.loads((folder / "server.json").read_text())
        identity = (int(fields["pid"]), int(fields["port"]), fields["health"], tuple(fields["command"]))
        return Server(*identity, fields.get("serves", ""), str(fields.get("home", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _command_line(pid: int) -> str:
    """Return the command line of a process, '' if there is none (or only a zombie)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        pass
    if Path("/proc/self").exists():
        return ""
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return listed.stdout.strip()


def _end(server: Server) -> None:
    """Ask the server and the workers it made (its process group) to end; insist after a while."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_SECONDS
        while server.running() and time.monotonic() < deadline:
            time.sleep(0.1)
        if server.running():
            os.killpg(server.pid, signal.SIGKILL)
    for child in [child for child in _children if child.pid == server.pid]:
        child.wait()
        _children.remove(child)


def _name(folder: Path) -> str:
    return {"prefect": "The Prefect server", "mlflow": "The MLflow server"}[folder.name]
