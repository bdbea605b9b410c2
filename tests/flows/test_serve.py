"""`cudd deploy` against a real server; `cudd serve` up to the point where it becomes a worker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.settings import PREFECT_API_URL
from typer.testing import CliRunner

from cudd_core.errors import ConfigError, CuddError
from flows import serve
from flows.catalogue import recipe_names
from flows.cli import app


@pytest.fixture
def client(prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))  # for `prefect deploy`, a process of its own
    with get_client(sync_client=True) as connected:
        yield connected


def nightly(client: SyncPrefectClient) -> DeploymentSchedule:
    (schedule,) = client.read_deployment_by_name("distill/digits").schedules
    return schedule


def test_deploying(client: SyncPrefectClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test: `prefect deploy` takes seconds. It is called from a folder that is not the repository's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    others = [
        f"{flow}{suffix}" for flow in ("compare", "robustness", "continual", "coverage") for suffix in ("", "-gpu")
    ]
    assert serve.deploy(serve.deployments_file()) == [*recipe_names(), *others]

    digits = client.read_deployment_by_name("distill/digits")
    assert digits.work_pool_name == serve.POOL
    assert digits.pull_steps
    assert digits.pull_steps[0]["prefect.deployments.steps.set_working_directory"]["directory"] == str(
        serve.deployments_file().parent
    )
    assert client.read_work_pool(serve.POOL).type == "process"
    queues = {queue.name: queue for queue in client.read_work_queues(work_pool_name=serve.POOL)}
    assert {name: queues[name].concurrency_limit for name in ("cpu", "gpu")} == {"cpu": 1, "gpu": 1}
    assert not nightly(client).active

    # What people have changed since stays: a schedule switched on, one of their own, a limit, another pool.
    client.update_deployment_schedule(digits.id, nightly(client).id, active=True)
    own = CronSchedule(cron="0 3 * * *", timezone="UTC")
    client.create_deployment_schedules(digits.id, [(own, True)], parameters={"seed": 7})
    robustness = client.read_deployment_by_name("robustness/robustness")
    often = IntervalSchedule(interval=timedelta(seconds=1))
    client.create_deployment_schedules(robustness.id, [(often, True)])
    client.update_work_queue(queues["gpu"].id, concurrency_limit=4)
    client.create_work_pool(WorkPoolCreate(name="elsewhere", type="process"))
    compare = client.read_deployment_by_name("compare/compare")
    client.update_deployment(compare.id, DeploymentUpdate(work_pool_name="elsewhere"))
    began = list[datetime]()
    prefect_deploy = serve._prefect_deploy

    def noted(folder: Path, names: Iterable[str]) -> None:
        began.append(datetime.now(UTC))
        prefect_deploy(folder, names)

    monkeypatch.setattr(serve, "_prefect_deploy", noted)
    assert serve.deploy(serve.deployments_file()) == [name for name in (*recipe_names(), *others) if name != "compare"]
    by_slug = {each.slug: each for each in client.read_deployment(digits.id).schedules}
    assert set(by_slug) == {"nightly", None} and all(each.active for each in by_slug.values())
    assert by_slug[None].schedule == own and by_slug[None].parameters == {"seed": 7}
    assert client.read_work_queue(queues["gpu"].id).concurrency_limit == 4
    assert client.read_deployment(compare.id).work_pool_name == "elsewhere"

    # The next runs are planned when it returns, also what fell due while `prefect deploy` had dropped the plan.
    # (Prefect 3.8.8's scheduler cannot insert runs with SQLAlchemy 2.1: schedules would never fire.)
    planned = [run for run in client.read_flow_runs() if run.auto_scheduled and run.expected_start_time]
    assert {run.deployment_id for run in planned} == {digits.id, robustness.id}
    due = sorted(run.expected_start_time for run in planned if run.deployment_id == robustness.id)
    assert due[0] <= began[0] + often.interval and len(due) == len(set(due))


def test_a_failing_deploy_says_what_prefect_said(client: SyncPrefectClient, tmp_path: Path) -> None:
    with pytest.raises(CuddError, match=r"(?s)`prefect deploy` failed in .*(prefect\.yaml|No deployments|digits)"):
        serve._prefect_deploy(tmp_path, ["digits"])


def test_without_the_repository_there_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "__file__", str(tmp_path / "flows" / "serve.py"))
    with pytest.raises(ConfigError, match="repository"):
        serve.deployments_file()
    for command in ("serve", "deploy"):
        result = CliRunner().invoke(app, [command])
        assert result.exit_code == 2
        assert "prefect.yaml" in result.stderr


def test_serve_becomes_a_worker_that_knows_the_servers(
    prefect_server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = str(PREFECT_API_URL.value())
    became: dict[str, Any] = {}

    def execv(program: str, command: tuple[str, ...]) -> None:
        became.update(command=command, environment=dict(os.environ))

    # Its changes to the environment end with the test.
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(os, "execv", execv)
    monkeypatch.setattr(serve, "deploy", lambda file: ["digits"])
    monkeypatch.chdir(tmp_path)
    os.environ |= {"CUDD_HOME": "home", "PREFECT_API_URL": api}
    os.environ |= {"MLFLOW_TRACKING_URI": api.removesuffix("/api")}  # some server, so that none is started
    result = CliRunner().invoke(app, ["serve", "--limit", "2"], catch_exceptions=False)
    assert result.exit_code == 0
    assert became["command"][-4:] == ("--pool", serve.POOL, "--limit", "2")
    assert became["environment"]["CUDD_HOME"] == str(tmp_path / "home")
    assert became["environment"]["PREFECT_API_URL"] == api


def test_runs_of_a_worker_use_the_store_that_serve_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They work in the repository's folder, where a relative path would name another file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    environment = serve.serving_environment(tmp_path / "home", "http://127.0.0.1:9/api")
    assert environment["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/runs.db"
    monkeypatch.setenv("CUDD_ARTIFACT_ROOT", "arts")
    environment = serve.serving_environment(tmp_path / "home", "http://127.0.0.1:9/api")
    assert environment["CUDD_ARTIFACT_ROOT"] == str(tmp_path / "arts")
