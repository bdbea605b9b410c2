"""Our own servers, with a small HTTP server standing in for them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cudd_core.errors import CuddError, ResourceError, StoreError, UserError
from flows import keep_servers, servers
from flows.cli import app
from tasks.folders import check_home
from tests.flows.stand_ins import api


def stand_in(port: int) -> tuple[str, ...]:
    program = (
        "import http.server, sys; port = int(sys.argv[sys.argv.index('--port') + 1]);"
        "http.server.HTTPServer(('127.0.0.1', port), http.server.SimpleHTTPRequestHandler).serve_forever()"
    )
    return (sys.executable, "-c", program, "--port", str(port))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for name in ("prefect", "mlflow"):
        monkeypatch.setattr(servers, f"_{name}_command", stand_in)
        monkeypatch.setattr(servers, f"{name.upper()}_HEALTH", "/")
    home = tmp_path / "home"
    home.mkdir()
    yield home
    servers.stop_servers(home)


def pid_of(home: Path, name: str = "prefect") -> int:
    return int(json.loads((home / name / "server.json").read_text())["pid"])


@pytest.mark.parametrize("status", [200, 401])
def test_a_configured_api_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    with api(status) as url:
        monkeypatch.setenv("PREFECT_API_URL", url)
        assert servers.ensure_prefect_server(tmp_path) == url
    with api(200) as url:
        assert servers.ensure_mlflow_server(tmp_path, url) == url
    assert list(tmp_path.iterdir()) == []


def refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, url: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(UserError, match=r"PREFECT_API_URL.*127\.0\.0\.1.*unset") as caught:
        servers.ensure_prefect_server(tmp_path)
    assert "hunter2" not in str(caught.value)


def test_an_api_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(monkeypatch, tmp_path, "http://ann:hunter2@127.0.0.1:9/api")
    refused(monkeypatch, tmp_path, "http://ann:hunter2@127.0.0.1/api")
    for status in (404, 500):
        with api(status) as url:
            refused(monkeypatch, tmp_path, url)


@pytest.mark.parametrize("words", [["ui"], ["deploy"], ["serve"], ["distill", "digits"]])
def test_commands_say_that_the_api_does_not_answer(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())  # a command changes it
    os.environ |= {"CUDD_HOME": str(tmp_path / "home"), "PREFECT_API_URL": "http://ann:hunter2@127.0.0.1:9/api"}
    os.environ |= {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # none of our own is started
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "Error: PREFECT_API_URL" in result.stderr and "unset" in result.stderr
    assert "hunter2" not in result.output and "keep running" not in result.output


@pytest.mark.parametrize("port", [9, 70000])
def test_ui_says_that_the_tracking_server_does_not_answer(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with api(200) as url:
        os.environ |= {"CUDD_HOME": str(tmp_path / "home"), "PREFECT_API_URL": url}
        os.environ |= {"MLFLOW_TRACKING_URI": f"http://ann:hunter2@127.0.0.1:{port}"}
        result = CliRunner().invoke(app, ["ui"])
    assert result.exit_code == 1
    assert f"MLflow tracking server http://***@127.0.0.1:{port} does not answer" in result.stderr
    assert "hunter2" not in result.output and "keep running" not in result.output


def test_a_proxy_before_a_dead_tracking_server_is_no_answer(tmp_path: Path) -> None:
    with api(502) as url, pytest.raises(StoreError, match=r"answers 502 .*MLFLOW_TRACKING_URI"):
        servers.ensure_mlflow_server(tmp_path, url)


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
@pytest.mark.parametrize("hosts", ["", "example.org, mlflow.corp", "*"])
def test_our_own_servers_are_reached_without_a_proxy(name: str, hosts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And others as before, however that was spelt."""
    monkeypatch.setattr(os, "environ", {"http_proxy": "http://127.0.0.1:9", name: hosts})
    monkeypatch.setattr(urllib.request, "os", os)
    for _ in range(2):
        servers._leave_out_of_proxies()
        assert urllib.request.proxy_bypass(servers.HOST)
        assert bool(urllib.request.proxy_bypass("mlflow.corp")) is (hosts != "")


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
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ann:hunter2@tracking")
    pages = servers.mlflow_pages(home)
    assert pages is not None and pages.endswith("tracking") and "hunter2" not in pages
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////x")
    assert servers.mlflow_pages(home) is None
    started = servers.ensure_mlflow_server(home, "sqlite:////x")
    assert servers.mlflow_pages(home) == started
    servers.stop_servers(home)
    assert servers.mlflow_pages(home) is None


def test_pages_of_another_store_are_another_server_s(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////x")
    first = servers.ensure_mlflow_server(home, "sqlite:////x")
    old = pid_of(home, "mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////y")
    assert servers.mlflow_pages(home) is None
    assert servers.ensure_mlflow_server(home, "sqlite:////y") == first, "bookmarks go on working"
    assert pid_of(home, "mlflow") != old and not servers._command_line(old)
    assert servers.mlflow_pages(home) == first


def test_pages_and_runs_read_the_same_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server works in a folder of its own, where a relative path would name another file."""
    monkeypatch.chdir(home.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    environment = servers._mlflow_environment(home, servers.tracking_uri(home))
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{home.parent}/runs.db"


def test_a_copied_home_lets_the_original_s_servers_be(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////a-store-of-both")

    def ensure(place: Path) -> set[str]:
        return {servers.ensure_prefect_server(place), servers.ensure_mlflow_server(place, servers.tracking_uri(place))}

    originals = ensure(home)
    pids = [pid_of(home, name) for name in ("prefect", "mlflow")]
    copies = [tmp_path / "copy", tmp_path / "copy that is stopped at once"]
    for copy in copies:
        shutil.copytree(home, copy)
    assert servers.mlflow_pages(copies[0]) is None
    try:
        assert not ensure(copies[0]) & originals
        assert f"started for {home}" in caplog.text and f"kill {pids[0]}" in caplog.text
    finally:
        assert len(servers.stop_servers(copies[0])) == 2
    assert servers.stop_servers(copies[1]) == []
    assert ensure(home) == originals and [pid_of(home, name) for name in ("prefect", "mlflow")] == pids


def test_a_moved_home_with_a_link_in_its_old_place_keeps_its_servers(home: Path, tmp_path: Path) -> None:
    """The link is what a moved store asks for."""
    first = servers.ensure_prefect_server(home)
    new = home.rename(tmp_path / "new")
    home.symlink_to(new)
    assert servers.ensure_prefect_server(new) == first
    assert len(servers.stop_servers(new)) == 1


def test_a_server_that_died_is_started_again_on_its_port_and_one_that_was_stopped_is_not(home: Path) -> None:
    store = f"sqlite:///{home / 'mlflow.db'}"
    addresses = servers.ensure_prefect_server(home), servers.ensure_mlflow_server(home, store)
    for name in ("prefect", "mlflow"):
        before = pid_of(home, name)
        assert not servers.revive_server(home, name)
        os.kill(before, signal.SIGKILL)
        os.waitpid(before, 0)
        assert servers.revive_server(home, name) and pid_of(home, name) != before
    assert addresses == (servers.ensure_prefect_server(home), servers.ensure_mlflow_server(home, store))
    servers.stop_servers(home)
    assert not any(servers.revive_server(home, name) for name in ("prefect", "mlflow"))


def test_servers_are_looked_after_until_their_starter_ends(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    servers.ensure_prefect_server(home)
    before, looks = pid_of(home), []

    def wait(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            os.kill(before, signal.SIGKILL)
            os.waitpid(before, 0)

    monkeypatch.setattr(keep_servers.time, "sleep", wait)
    monkeypatch.setattr(keep_servers.os, "getppid", lambda: 7 if len(looks) < 4 else 1)
    keep_servers.main(7, home, ["prefect"])
    assert len(looks) == 4 and pid_of(home) != before
    assert "had died and was started again" in caplog.text


def test_servers_are_not_looked_after_for_a_starter_that_ended_at_once(home: Path) -> None:
    """It is dead before the process that it started has been able to ask for its pid."""
    servers.ensure_prefect_server(home)
    code = f"import pathlib; from flows.keep_servers import keep_servers; keep_servers(pathlib.Path({str(home)!r}))"
    # The output stays open until the last process that has it ends.
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as starter:
        try:
            starter.communicate(timeout=servers.START_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(starter.pid, signal.SIGKILL)


def test_a_record_of_an_older_version_is_this_home_s(home: Path) -> None:
    first = servers.ensure_prefect_server(home)
    record = home / "prefect" / "server.json"
    fields = json.loads(record.read_text())
    del fields["home"]
    record.write_text(json.dumps(fields))
    assert servers.ensure_prefect_server(home) == first
    assert len(servers.stop_servers(home)) == 1


def test_a_stranger_with_the_recorded_pid_is_left_alone(home: Path) -> None:
    """Pids are given out again: this test's own process must survive."""
    (home / "prefect").mkdir()
    record = {"pid": os.getpid(), "port": 1, "health": "/", "command": list(stand_in(1))}
    (home / "prefect" / "server.json").write_text(json.dumps(record))
    assert servers.stop_servers(home) == []
    assert not (home / "prefect" / "server.json").exists()


def test_a_server_that_only_another_machine_sees_is_let_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two servers on one SQLite file, which many machines see in a home on a share, would ruin it."""
    address, pid = servers.ensure_prefect_server(home), pid_of(home)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(servers, "_command_line", lambda pid: "")
        elsewhere.setattr(servers, "_children", [])
        with pytest.raises(UserError, match=r"Prefect server of .* does not see it.*Set PREFECT_API_URL"):
            servers.ensure_prefect_server(home)
        assert servers.stop_servers(home) == [] and "another container" in caplog.text
    assert servers.ensure_prefect_server(home) == address and pid_of(home) == pid
    servers.stop_servers(home)
    servers.ensure_prefect_server(home)
    assert pid_of(home) != pid


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says there what a process does to new files")
def test_what_a_server_writes_is_for_this_user_alone(home: Path) -> None:
    servers.ensure_prefect_server(home)
    assert "Umask:\t0077" in Path(f"/proc/{pid_of(home)}/status").read_text()


def test_links_to_mlflow_begin_as_browsers_know_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert servers.mlflow_pages(home) == "http://mlflow:5000"
    monkeypatch.setenv("CUDD_MLFLOW_URL", "https://mlflow.example.org/")
    assert servers.mlflow_pages(home) == "https://mlflow.example.org"


def test_a_home_without_locks_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("tasks.folders.fcntl.flock", missing)
    with pytest.raises(ResourceError, match=r"has no locks \(flock\).*CUDD_HOME"):
        check_home(home)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}'])
def test_a_damaged_record_is_no_server(home: Path, content: str) -> None:
    (home / "prefect").mkdir()
    (home / "prefect" / "server.json").write_text(content)
    assert servers.ensure_prefect_server(home).endswith("/api")


def test_a_server_that_dies_is_reported_with_its_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_prefect_command", lambda port: (sys.executable, "-c", "raise SystemExit(3)"))
    with pytest.raises(CuddError, match=r"server\.log"):
        servers.ensure_prefect_server(home)


def test_a_new_home_is_for_this_user_alone(tmp_path: Path) -> None:
    check_home(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "shared").mkdir(mode=0o755)
    check_home(tmp_path / "shared")
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755


def test_an_unwritable_home_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="CUDD_HOME"):
        check_home(tmp_path / "file" / "home")


def test_other_web_sites_in_the_browser_cannot_use_the_api(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can call Prefect's API makes its worker run anything; by default, the pages of every web site may."""
    given = servers._prefect_environment(home)
    assert given["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:{port},http://localhost:{port}"
    assert given["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    monkeypatch.setenv("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", "https://prefect.corp")
    assert servers._prefect_environment(home)["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "https://prefect.corp"


def test_a_password_is_not_on_the_command_line(tmp_path: Path) -> None:
    secret = "postgresql://user:hunter2@host/db"
    assert "hunter2" not in " ".join(servers._mlflow_command(1))
    assert servers._mlflow_environment(tmp_path, secret)["MLFLOW_BACKEND_STORE_URI"] == secret
