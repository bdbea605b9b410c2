"""prefect.yaml: a deployment for every recipe, others once a device, in the queues of their devices, and no paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.automations import TAG, Patience
from flows.catalogue import recipe_names
from flows.recipes import get_recipe
from flows.serve import POOL, deployments_file

DESCRIBED: dict[str, dict[str, Any]] = {
    deployment["name"]: deployment for deployment in yaml.safe_load(deployments_file().read_text())["deployments"]
}


COMPARE = {"compare": "cpu", "compare-gpu": "gpu"}
LABORATORIES = {
    f"{name}{suffix}": (name, queue)
    for name in ("robustness", "continual", "coverage")
    for suffix, queue in (("", "cpu"), ("-gpu", "gpu"))
}


def test_there_is_one_deployment_a_recipe() -> None:
    assert list(DESCRIBED) == [*recipe_names(), *COMPARE, *LABORATORIES]


@pytest.mark.parametrize("name", LABORATORIES)
def test_a_laboratory_waits_where_runs_of_its_device_do_and_asks_for_the_run(name: str) -> None:
    deployment, (laboratory, queue) = DESCRIBED[name], LABORATORIES[name]
    assert deployment["work_pool"]["work_queue_name"] == queue and deployment["tags"] == [TAG, queue]
    assert deployment["entrypoint"] == f"flows/{laboratory}.py:{laboratory}"
    assert "parameters" not in deployment


@pytest.mark.parametrize("name", COMPARE)
def test_comparisons_of_one_recipe_wait_where_its_runs_do(name: str) -> None:
    deployment = DESCRIBED[name]
    (recipe,) = deployment["parameters"]["recipes"]
    alone = DESCRIBED[recipe]
    assert deployment["work_pool"] == alone["work_pool"] and deployment["tags"] == alone["tags"] == [TAG, COMPARE[name]]
    assert deployment["entrypoint"] == "flows/compare.py:compare"


@pytest.mark.parametrize("name", recipe_names())
def test_a_deployment_runs_its_recipe_in_the_queue_of_its_device(name: str) -> None:
    deployment = DESCRIBED[name]
    queue = "gpu" if get_recipe(name).compute.device == "cuda" else "cpu"
    assert deployment["parameters"] == {"recipe": name}
    assert deployment["work_pool"]["name"] == POOL
    assert deployment["work_pool"]["work_queue_name"] == queue
    assert deployment["tags"] == [TAG, queue]
    file, function = deployment["entrypoint"].split(":")
    assert f"def {function}(" in (deployments_file().parent / file).read_text()


def test_runs_beat_more_often_than_the_automations_wait() -> None:
    """A live run has two chances before it counts as silent, and one that crashed is silent before it starts again."""
    for deployment in DESCRIBED.values():
        beat = int(deployment["work_pool"]["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
        assert beat >= 30, "Prefect sends none more often"
        assert 2 * beat < Patience().silence.total_seconds()
    assert Patience().silence < Patience().rest


def test_a_schedule_waits_to_be_switched_on() -> None:
    schedules = [schedule for deployment in DESCRIBED.values() for schedule in deployment.get("schedules", [])]
    assert schedules
    for schedule in schedules:
        assert schedule["active"] is False
        assert schedule["slug"], "without a slug, `prefect deploy` removes schedules that people have added"


def test_nothing_in_it_belongs_to_one_machine() -> None:
    text = deployments_file().read_text()
    assert str(Path.home()) not in text
    assert not [word for word in ("AWS_SECRET", "password", "http://", "https://") if word in text]
