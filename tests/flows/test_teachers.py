"""Whole runs with two teachers, and what they leave for people and for other software."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.flows.house import House, build

pytestmark = pytest.mark.usefixtures("prefect_server", "no_store_variables")

MakeHome = Callable[[str], Path]

TINY = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet2-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
other_teachers:
  - {arch: convnet1-w8, minimum_margin: 0.1}
schedule: {kind: logarithmic, ipc: 4, step: 2, block_size: 100, slices_per_shard: 5}
synthesis: {iterations: 2, batch_size: 10, jitter: 1, bn_statistics: pool}
relabel: {epochs_per_shard: 3, batchnorm: batch}
student: {training: {epochs: 3, batch_size: 16}}
evaluation: {seeds: 1, training: {epochs: 3, batch_size: 16}}
baselines: []
compute: {device: cpu, threads: 1, amp: "off"}
"""
FORMS = {"alone": ("other_teachers=",), "full": (), "none": ("relabel.storage=none",)}


@pytest.fixture(scope="module")
def house(prefect_server: None, make_home: MakeHome) -> House:
    return build(make_home("teachers"), TINY, FORMS)


def test_two_teachers_make_another_set_and_the_first_stays(house: House) -> None:
    alone, full = house.digests("alone"), house.digests("full")
    added = {
        *("squeeze/convnet1-w8-teacher-2", "preflight/teacher-2"),
        *("curriculum-1/statistics/1-teacher-2", "curriculum-2/statistics/2-teacher-2"),
    }
    assert full.keys() - alone.keys() == added and alone.keys() <= full.keys()
    kept = {name for name in alone if alone[name] == full[name]}
    assert {"squeeze/convnet2-w8", "preflight", "curriculum-1/statistics/1"} <= kept
    assert not [name for name in kept if "synthesize" in name or "relabel" in name or "train" in name]
    assert house.summaries["full"]["dataset"]["digest"] != house.summaries["alone"]["dataset"]["digest"]


def test_teachers_that_are_asked_in_training_give_the_same_networks(house: House) -> None:
    full, none = house.digests("full"), house.digests("none")
    assert {name for name in full if "relabel" in name} == full.keys() - none.keys() != set()
    assert none == {name: full[name] for name in none}


def test_every_teacher_s_accuracy_is_told(house: House) -> None:
    accuracy = house.summaries["full"]["accuracy"]
    assert set(accuracy) == {"teacher", "teacher_2", "distilled"}
    assert accuracy["teacher"] == house.summaries["alone"]["accuracy"]["teacher"] != accuracy["teacher_2"]
    run = house.store().client.get_run(house.run("full"))
    assert run.data.metrics["teacher_2_accuracy"] == accuracy["teacher_2"]
    assert "convnet1-w8" in run.data.params["other_teachers"]


def test_the_closing_table_names_both(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import summary

    tables: list[list[dict[str, Any]]] = []
    monkeypatch.setattr(summary, "create_table_artifact", lambda table, description: tables.append(table))
    monkeypatch.setattr(summary, "mlflow_pages", lambda *_: None)
    summary.show_in_prefect(house.summaries["full"])
    (rows,) = tables
    assert [(row["method"], row["arch"]) for row in rows] == [
        *(("teacher (all data)", "convnet2-w8"), ("teacher 2 (all data)", "convnet1-w8")),
        ("distilled", "convnet2-w8"),
    ]


def test_exported_labels_are_the_mean_that_they_say_they_are(house: House, tmp_path: Path) -> None:
    """Those that were stored, and those that the teachers give again."""
    from flows.export import export

    logits = []
    for form in ("full", "none"):
        labels = tmp_path / form / "soft_labels"
        export(house.run(form), "imagefolder", tmp_path / form, soft_labels=True, store=house.store())
        settings = json.loads((labels / "labels.json").read_text())
        assert (settings["teacher"], settings["other_teachers"]) == ("convnet2-w8", ["convnet1-w8"])
        logits.append(torch.cat([load_file(labels / name)["logits"] for name in settings["files"]]))
    assert torch.equal(*logits)
