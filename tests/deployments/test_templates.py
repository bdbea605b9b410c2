"""The templates for Kubernetes and Ray."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.serve import deployments_file

FOLDER = deployments_file().parent / "deployments"
TEMPLATE: dict[str, Any] = json.loads((FOLDER / "kubernetes" / "base-job-template.json").read_text())
MANIFEST: dict[str, Any] = TEMPLATE["job_configuration"]["job_manifest"]
POD: dict[str, Any] = MANIFEST["spec"]["template"]["spec"]


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for each in value.values() for text in strings(each)]
    if isinstance(value, list):
        return [text for each in value for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_every_placeholder_is_a_variable_and_every_variable_is_used() -> None:
    used = {name for text in strings(TEMPLATE["job_configuration"]) for name in re.findall(r"{{ (\w+) }}", text)}
    assert used == set(TEMPLATE["variables"]["properties"])


def test_a_run_asks_for_gpus_and_gets_its_secrets_by_reference() -> None:
    (container,) = POD["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert TEMPLATE["variables"]["properties"]["gpus"]["default"] == 1
    assert {"secretRef": {"name": "{{ credentials }}"}} in container["envFrom"]
    assert container["env"] == "{{ env }}"
    assert "default" not in TEMPLATE["variables"]["properties"]["env"]


def test_a_pod_is_not_root_and_is_not_tried_again_by_kubernetes() -> None:
    """With a backoff limit of 0, Prefect puts the run of an evicted pod back into its queue."""
    assert MANIFEST["spec"]["backoffLimit"] == 0
    assert POD["restartPolicy"] == "Never"
    assert POD["securityContext"]["runAsNonRoot"] is True
    assert POD["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert POD["automountServiceAccountToken"] is False
    user = re.search(r"--uid (\d+)", (FOLDER / "Containerfile").read_text())
    assert user
    assert POD["securityContext"]["runAsUser"] == int(user[1])


def test_the_home_is_the_images() -> None:
    home = re.search(r"CUDD_HOME=(\S+)", (FOLDER / "Containerfile").read_text())
    assert home
    assert {"name": "home", "mountPath": home[1]} in POD["containers"][0]["volumeMounts"]
    claim = yaml.safe_load((FOLDER / "kubernetes" / "home.yaml").read_text())
    assert claim["metadata"]["name"] == TEMPLATE["variables"]["properties"]["home_claim"]["default"]
    assert claim["metadata"]["namespace"] == TEMPLATE["variables"]["properties"]["namespace"]["default"]


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "ray" / "cluster.yaml").read_text())
    return loaded


@pytest.mark.filterwarnings("ignore")
def test_ray_accepts_the_cluster(cluster: dict[str, Any]) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="needs Ray: pip install ray")
    util.validate_config(util.prepare_config(cluster))
    with pytest.raises(Exception, match="unheard_of"):
        util.validate_config(util.prepare_config(cluster | {"unheard_of": 1}))


def test_the_cluster_holds_no_secret_and_serves_clients(cluster: dict[str, Any]) -> None:
    assert "--env-file /etc/cudd/ray.env" in cluster["docker"]["run_options"]
    assert not re.search(r"SECRET_ACCESS_KEY *[=:]", (FOLDER / "ray" / "cluster.yaml").read_text())
    assert any("--ray-client-server-port=10001" in command for command in cluster["head_start_ray_commands"])


def test_no_template_names_a_path_of_this_machine() -> None:
    for file in FOLDER.rglob("*"):
        if file.is_file():
            assert str(Path.cwd()) not in file.read_text()
