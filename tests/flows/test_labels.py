"""Whole runs whose labels are stored in fewer bytes, used again, or not stored at all; and their exports."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cudd_core.errors import ResourceError
from tests.flows.house import House, build

pytestmark = pytest.mark.usefixtures("prefect_server", "no_store_variables")

MakeHome = Callable[[str], Path]

TINY = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet2-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: logarithmic, ipc: 4, step: 2, block_size: 100, slices_per_shard: 5}
synthesis: {iterations: 2, batch_size: 10, jitter: 1}
relabel: {epochs_per_shard: 2}
student: {training: {epochs: 3, batch_size: 16}}
evaluation: {seeds: 1, training: {epochs: 5, batch_size: 16}}
baselines: []
compute: {device: cpu, threads: 1, amp: "off"}
"""
IMAGES, BATCHES = 40, 3
FORMS = {
    "full": (),
    "none": ("relabel.storage=none",),
    "coded": ("relabel.storage=int8", "relabel.reuse=2"),
}


@pytest.fixture(scope="module")
def house(prefect_server: None, make_home: MakeHome) -> House:
    return build(make_home("labels"), TINY, FORMS)


def test_labels_that_nobody_stored_give_the_same_networks(house: House) -> None:
    full, none = house.digests("full"), house.digests("none")
    assert {name for name in full if "relabel" in name} == full.keys() - none.keys() != set()
    assert none == {name: full[name] for name in none}  # bit for bit: teacher, images, student, evaluation
    assert house.summaries["none"]["accuracy"] == house.summaries["full"]["accuracy"]
    assert house.summaries["none"]["dataset"]["label_bytes"] == 0


def test_stored_bytes_are_those_that_are_planned(house: House) -> None:
    from flows.plan import plan
    from flows.recipe import Recipe

    for form, summary in house.summaries.items():
        planned = plan(Recipe.model_validate(summary["config"]), 10, 1437).labels.of_set
        stored = summary["dataset"]["label_bytes"]
        # Headers and manifests of at most three shards.
        assert planned <= stored <= planned + (3 * 2000 if planned else 0), form
    epochs = {"full": 5, "coded": 3}
    sizes = {"full": IMAGES * 10 * 2, "coded": IMAGES * 10 + BATCHES * 4}
    for form, count in epochs.items():
        assert house.summaries[form]["dataset"]["label_bytes"] >= count * sizes[form]


def exported(house: House, form: str, to: Path) -> tuple[Tensor, dict[str, Any]]:
    from flows.export import export

    run = house.run(form)
    export(run, "imagefolder", to, soft_labels=True, store=house.store())
    settings: dict[str, Any] = json.loads((to / "soft_labels" / "labels.json").read_text())
    logits = torch.cat([load_file(to / "soft_labels" / name)["logits"] for name in settings["files"]])
    assert logits.dtype == torch.float16 and len(logits) == settings["epochs"]
    return logits, settings


def test_exports_hold_float16_logits_whatever_was_stored(house: House, tmp_path: Path) -> None:
    full, _ = exported(house, "full", tmp_path / "full")
    none, _ = exported(house, "none", tmp_path / "none")
    coded, settings = exported(house, "coded", tmp_path / "coded")
    assert full.shape == (5, IMAGES, 10) and torch.equal(none, full)
    assert coded.shape == (3, IMAGES, 10) and settings["augmentation"]["reuse"] == 2
    # The students, and so the images of the second curriculum, are others; the labels have the same teacher.
    assert not torch.equal(coded, full[:3])


def test_space_is_not_asked_for_what_lies_there(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.checks import check_data
    from flows.distill import pipeline
    from flows.plan import plan
    from flows.recipe import Recipe
    from flows.space import bytes_lacking, check_space

    recipe, store = Recipe.model_validate(house.summaries["full"]["config"]), house.store()
    data, stages = check_data(recipe), partial(pipeline, recipe=recipe)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    check_space(recipe, data, store, stages)  # A full disk does not stop a run that has all it stores.
    for stage in ("synthesize", "relabel"):
        with pytest.raises(ResourceError, match=r"has yet to store about .*B"):
            check_space(recipe, data, store, stages, force=frozenset({stage}))
    planned = plan(recipe, 10, 1437)
    assert bytes_lacking(recipe, data, store, stages) == (0, 0, 0)
    assert bytes_lacking(recipe, data, store, stages, frozenset({"synthesize"})) == (planned.image_bytes, 0, 0)
    assert bytes_lacking(recipe, data, store, stages, frozenset({"relabel"})) == (0, planned.labels.in_all, 0)
    beside = recipe.model_copy(update={"baselines": ("random",)})
    lacking = bytes_lacking(beside, data, store, partial(pipeline, recipe=beside))
    assert lacking == (planned.image_bytes, planned.labels.of_set, 0)


def test_memory_is_not_asked_for_what_was_computed(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is looked at and evaluated on a machine that could not have made it."""
    from flows.distill import pipeline
    from flows.prepare import opened_run
    from flows.recipe import Recipe

    recipe = Recipe.model_validate(house.summaries["full"]["config"])
    stages = partial(pipeline, recipe=recipe)
    monkeypatch.setenv("CUDD_HOME", str(house.home))
    monkeypatch.setattr("flows.memory.memory_bytes", lambda: 0)
    with opened_run(recipe, stages):
        pass
    with (
        pytest.raises(ResourceError, match=r"^synthesize needs"),
        opened_run(recipe, stages, frozenset({"synthesize"})),
    ):
        pytest.fail("the run began")
    more = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"seeds": 2})})
    with pytest.raises(ResourceError, match=r"^train_network needs"), opened_run(more, partial(pipeline, recipe=more)):
        pytest.fail("the run began")
