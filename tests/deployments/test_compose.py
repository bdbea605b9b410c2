"""deployments/compose.yaml: what must hold whether or not there is a Docker here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.serve import POOL, deployments_file

ROOT = deployments_file().parent
FILE = ROOT / "deployments" / "compose.yaml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text())["services"]
SECRETS = tuple(
    line.partition("=")[0] for line in (FILE.parent / ".env.example").read_text().splitlines() if line[:1].isupper()
)
ONE_SHOT = "deploy"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_names_an_exact_image(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].partition(":")
    assert "." not in image.split("/")[0], "a registry of its own"
    assert re.search(r"\d+\.\d+", tag), "not `latest`, not one number that moves"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_comes_back_and_says_how_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == ("on-failure" if name == ONE_SHOT else "unless-stopped")
    assert service["healthcheck"] == {"disable": True} if name == ONE_SHOT else service["healthcheck"]["test"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_port_is_open_on_this_host_alone(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_other_web_sites_in_a_browser_cannot_use_prefect_s_api() -> None:
    given = SERVICES["prefect"]["environment"]
    assert given["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] + "/api" == given["PREFECT_UI_API_URL"]
    assert given["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"


@pytest.mark.parametrize("name", [name for name in SERVICES if SERVICES[name]["image"].startswith("cudd:")])
def test_our_services_have_no_privileges(name: str) -> None:
    assert SERVICES[name]["cap_drop"] == ["ALL"] and SERVICES[name]["security_opt"] == ["no-new-privileges:true"]


def test_services_wait_for_what_they_need_to_be_healthy() -> None:
    for service in SERVICES.values():
        for other, wanted in service.get("depends_on", {}).items():
            condition = "service_completed_successfully" if other == ONE_SHOT else "service_healthy"
            assert wanted == {"condition": condition}


def test_secrets_come_from_the_environment_file_alone() -> None:
    assert set(SECRETS) == {"POSTGRES_PASSWORD", "S3_ACCESS_KEY", "S3_SECRET_KEY"}
    assert not re.findall(r"^[A-Z_]+=.+", (FILE.parent / ".env.example").read_text(), re.MULTILINE)
    assert all("$" not in word for service in SERVICES.values() for word in service.get("command", ()))
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|AUTH_KEY", name) or "@" in value:
                assert any(f"${{{secret}" in value for secret in SECRETS), name
    ignored = subprocess.run(["git", "check-ignore", "-q", "deployments/.env"], cwd=ROOT, check=False)
    assert ignored.returncode in (0, 128), "git would take deployments/.env (128: this is no clone)"


def test_the_image_is_this_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert SERVICES["worker"]["image"] == f"cudd:{version}"
    assert f"-t cudd:{version} " in (FILE.parent / "Containerfile").read_text()


def test_workers_poll_the_pool_and_both_queues() -> None:
    commands = [SERVICES[name]["command"] for name in ("worker", "worker-gpu")]
    described = yaml.safe_load(deployments_file().read_text())["deployments"]
    polled = {command[command.index("--work-queue") + 1] for command in commands}
    assert polled == {deployment["work_pool"]["work_queue_name"] for deployment in described}
    assert all(command[command.index("--pool") + 1] == POOL for command in commands)


def test_the_container_file_installs_what_is_pinned_and_runs_as_nobody_special() -> None:
    text = (FILE.parent / "Containerfile").read_text()
    makefile = re.search(r"UV_VERSION := (\S+)", (ROOT / "Makefile").read_text())
    assert makefile
    assert f"uv=={makefile[1]}" in text
    assert "-c constraints.txt" in text
    assert text.index("COPY pyproject.toml constraints.txt") < text.index("COPY . ")
    assert re.search(r"^USER (?!root)", text, re.MULTILINE)
    assert set(re.findall(r"--extra (\S+)", text)) <= set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )


def test_compose_itself_reads_the_file(tmp_path: Path) -> None:
    plugin = ["docker", "compose"]
    if shutil.which("docker-compose"):
        compose = ["docker-compose"]
    elif (
        shutil.which("docker")
        and subprocess.run([*plugin, "version"], capture_output=True, check=False).returncode == 0
    ):
        compose = plugin
    else:
        pytest.skip(
            "neither docker-compose nor docker compose is installed (Debian, Ubuntu: apt install docker-compose)"
        )
    filled, empty = tmp_path / "filled", tmp_path / "empty"
    filled.write_text("".join(f"{name}=value-of-{name}\n" for name in SECRETS))
    empty.write_text("UNRELATED=1\n")

    def config(environment: Path) -> subprocess.CompletedProcess[str]:
        command = [*compose, "--env-file", str(environment), "-f", str(FILE), "config"]
        clean = {name: value for name, value in os.environ.items() if name not in SECRETS}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=clean)

    done = config(filled)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(SERVICES) - {"worker-gpu"} <= set(services)
    assert "value-of-POSTGRES_PASSWORD@postgres" in services["mlflow"]["environment"]["MLFLOW_BACKEND_STORE_URI"]
    refused = config(empty)
    assert refused.returncode != 0
    assert "deployments/.env" in refused.stderr
