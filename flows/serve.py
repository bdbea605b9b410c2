"""The service on one machine: the deployments of prefect.yaml on a Prefect server, and a worker that runs them."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from cudd_core.errors import ConfigError, CuddError
from tasks.addresses import artifact_root, tracking_uri

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.responses import DeploymentResponse

_log = logging.getLogger("cudd.serve")

POOL = "cudd-local"

QUEUE_LIMIT = 1
"""Concurrent runs in a new queue. A team raises it in the UI to the number of machines that serve the queue."""


def deployments_file() -> Path:
    """Return the repository's prefect.yaml.

    Raises:
        ConfigError: the package is installed without its repository.
    """
    file = Path(__file__).parents[1] / "prefect.yaml"
    if not file.is_file():
        raise ConfigError(
            f"There is no {file.name} in {file.parent}: deployments are read from the repository. "
            "Call this from a clone that was set up with `make setup`."
        )
    return file


def deploy(file: Path) -> list[str]:
    """Bring the Prefect server in use up to date with prefect.yaml; return the names of the deployments.

    Missing pools and queues are created; existing ones are left alone. So are people's own schedules, those that
    somebody has switched on, and deployments that somebody has moved to another pool.

    Raises:
        CuddError: `prefect deploy` failed.
    """
    from prefect.client.orchestration import get_client

    from flows.automations import install_automations

    described = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
    pool_of = {deployment["name"]: deployment["work_pool"]["name"] for deployment in described}
    with get_client(sync_client=True) as client:
        for pool, queues in _pools(described).items():
            _make_pool(client, pool, queues)
        there = _deployments(client, pool_of)
        moved = {each.name: each.work_pool_name for each in there if each.work_pool_name != pool_of[each.name]}
        for name, other in moved.items():
            _log.warning("%s is left as it is: it was moved to the work pool %s", name, other)
        names = [name for name in pool_of if name not in moved]
        began = datetime.now(UTC)
        try:
            _prefect_deploy(file.parent, names)
        finally:
            _restore_schedules(client, there)
            _plan_runs(client, there, began)
    install_automations()
    return names


def serving_environment(home: Path, prefect_api: str) -> dict[str, str]:
    """Return the environment variables that Prefect's commands and a worker's runs need.

    They must be set before Prefect is imported, which reads them then. Runs have another working folder, so paths are
    absolute.
    """
    environment = {
        "CUDD_HOME": str(home),
        "PREFECT_API_URL": prefect_api,
        "PREFECT_HOME": os.environ.get("PREFECT_HOME") or str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    if os.environ.get("MLFLOW_TRACKING_URI"):
        environment["MLFLOW_TRACKING_URI"] = tracking_uri(home)
    if root := artifact_root():
        environment["CUDD_ARTIFACT_ROOT"] = root
    return environment


def run_worker(limit: int) -> NoReturn:
    """Replace this process by a process worker of the pool, which ends with Ctrl-C or SIGTERM."""
    # A script's background job inherits SIGINT as ignored, but the worker turns SIGTERM into a SIGINT to itself.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    command = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", str(limit))
    os.execv(sys.executable, command)


def _pools(described: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Return the queues of every pool."""
    pools: defaultdict[str, set[str]] = defaultdict(set)
    for deployment in described:
        pools[deployment["work_pool"]["name"]].add(deployment["work_pool"]["work_queue_name"])
    return pools


def _make_pool(client: SyncPrefectClient, pool: str, queues: set[str]) -> None:
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    with contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=pool, type=ProcessWorker.type, base_job_template=template))
    for queue in sorted(queues):
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_queue(queue, work_pool_name=pool, concurrency_limit=QUEUE_LIMIT)


def _deployments(client: SyncPrefectClient, names: Iterable[str]) -> list[DeploymentResponse]:
    """Return the deployments with these names that are on the server."""
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

    return client.read_deployments(deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=list(names))))


def _restore_schedules(client: SyncPrefectClient, before: Iterable[DeploymentResponse]) -> None:
    """Restore schedules to what they were before `prefect deploy`.

    That command sets the schedules of the file to what the file says, which is off. If somebody has created one without
    a slug, as `prefect deployment schedule create` does, it creates the file's again and drops all others.
    """
    from prefect.client.schemas.actions import DeploymentScheduleCreate

    for deployment in before:
        now = client.read_deployment(deployment.id).schedules
        found = {schedule.id: schedule for schedule in now} | {each.slug: each for each in now if each.slug}
        for old in deployment.schedules:
            new = found.get(old.slug or old.id)
            if new is None:
                kept = old.model_dump(include=set(DeploymentScheduleCreate.model_fields))
                client.create_deployment_schedules(deployment.id, [DeploymentScheduleCreate.model_validate(kept)])
            elif new.active is not old.active:
                client.update_deployment_schedule(deployment.id, new.id, active=old.active)


def _plan_runs(client: SyncPrefectClient, deployments: Iterable[DeploymentResponse], since: datetime) -> None:
    """Plan the runs that schedules have due from `since` on; what is planned or has run already is left as it is.

    `prefect deploy` and every change of a schedule drop the planned runs. The server plans again within a minute, but
    only what is due then or later.
    """
    for deployment in deployments:
        if not deployment.paused and any(schedule.active for schedule in deployment.schedules):
            path, start = {"id": deployment.id}, {"start_time": since.isoformat()}
            client.request("POST", "/deployments/{id}/schedule", path_params=path, json=start).raise_for_status()


def _prefect_deploy(folder: Path, names: Iterable[str]) -> None:
    chosen = [word for name in names for word in ("--name", name)]
    command = (sys.executable, "-m", "prefect", "deploy", "--no-prompt", *chosen)
    # prefect.yaml takes the folder that deployments record from PWD, which `cwd` alone does not change.
    environment = {**os.environ, "PWD": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CuddError(f"`prefect deploy` failed in {folder}:\n{(done.stdout + done.stderr)[-3000:]}")
