"""Our own servers, with a small HTTP server standing in for them."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cudd_core.errors import CuddError, ResourceError
from flows import servers


def stand_in(port: int) -> tuple[str, ...]:
    program = (
        "import http.server, sys; port = int(sys.argv[sys.argv.index('--port') + 1]);"
        "http.server.HTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    return (sys.executable, "-c", program, "--port", str(port))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(servers, "_prefect_command", stand_in)
    monkeypatch.setattr(servers, "PREFECT_HEALTH", "/")
    yield tmp_path
    servers.stop_servers(tmp_path)


def pid_of(home: Path) -> int:
    return int(json.loads((home / "prefect" / "server.json").read_text())["pid"])


def test_a_configured_api_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://somewhere/api")
    assert servers.ensure_prefect_server(tmp_path) == "http://somewhere/api"
    assert servers.ensure_mlflow_server(tmp_path, "https://tracking") == "https://tracking"
    assert list(tmp_path.iterdir()) == []


def test_a_server_is_started_once_and_reused(home: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        urls = set(pool.map(lambda _: servers.ensure_prefect_server(home), range(4)))
    assert len(urls) == 1
    assert servers.launch_prefect_server(home) in urls
    first = pid_of(home)
    assert servers.stop_servers(home) != []
    assert servers.stop_servers(home) == []
    servers.ensure_prefect_server(home)
    assert pid_of(home) != first


@pytest.mark.parametrize("command", [servers._prefect_command, servers._mlflow_command])
def test_servers_listen_on_loopback_alone(command: Callable[[int], tuple[str, ...]]) -> None:
    words = command(4200)
    assert words[words.index("--host") + 1] == "127.0.0.1"


def test_a_server_comes_back_on_its_port(home: Path) -> None:
    """Bookmarks and the links that old runs hold go on working."""
    first = servers.ensure_prefect_server(home)
    servers.stop_servers(home)
    assert servers.ensure_prefect_server(home) == first


def test_a_port_that_somebody_else_took_is_let_be(home: Path) -> None:
    first = servers.ensure_prefect_server(home)
    servers.stop_servers(home)
    with socket.create_server(("127.0.0.1", int(first.removesuffix("/api").rpartition(":")[2]))):
        assert servers.ensure_prefect_server(home) != first


def test_pages_are_those_of_a_server_that_runs(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_mlflow_command", stand_in)
    monkeypatch.setattr(servers, "MLFLOW_HEALTH", "/")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:hunter2@tracking")
    pages = servers.mlflow_pages(home)
    assert pages is not None and pages.endswith("tracking") and "hunter2" not in pages
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x")
    assert servers.mlflow_pages(home) is None
    started = servers.ensure_mlflow_server(home, "sqlite:///x")
    assert servers.mlflow_pages(home) == started
    servers.stop_servers(home)
    assert servers.mlflow_pages(home) is None


def test_pages_of_another_store_are_another_server_s(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_mlflow_command", stand_in)
    monkeypatch.setattr(servers, "MLFLOW_HEALTH", "/")

    def process() -> int:
        return int(json.loads((home / "mlflow" / "server.json").read_text())["pid"])

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///x")
    first = servers.ensure_mlflow_server(home, "sqlite:///x")
    old = process()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///y")
    assert servers.mlflow_pages(home) is None
    assert servers.ensure_mlflow_server(home, "sqlite:///y") == first, "bookmarks go on working"
    assert process() != old and not servers._command_line(old)
    assert servers.mlflow_pages(home) == first


def test_a_stranger_with_the_recorded_pid_is_left_alone(home: Path) -> None:
    """Pids are given out again: this test's own process must survive."""
    (home / "prefect").mkdir()
    record = {"pid": os.getpid(), "port": 1, "health": "/", "command": list(stand_in(1))}
    (home / "prefect" / "server.json").write_text(json.dumps(record))
    assert servers.stop_servers(home) == []
    assert not (home / "prefect" / "server.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_record_is_no_server(home: Path, content: str) -> None:
    (home / "prefect").mkdir()
    (home / "prefect" / "server.json").write_text(content)
    assert servers.ensure_prefect_server(home).endswith("/api")


def test_a_server_that_dies_is_reported_with_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_prefect_command", lambda port: (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(CuddError, match=r"server\.log"):
        servers.ensure_prefect_server(home)


def test_an_unwritable_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="CUDD_HOME"):
        servers.prepare_home(tmp_path / "file" / "home")


def test_a_password_is_not_on_the_command_line(tmp_path: Path) -> None:
    secret = "postgresql://user:hunter2@host/db"
    assert "hunter2" not in " ".join(servers._mlflow_command(1))
    assert servers._mlflow_environment(tmp_path, secret)["MLFLOW_BACKEND_STORE_URI"] == secret
