"""Exports of a finished tiny run, and its own exports evaluated as if they were somebody else's."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cudd_core.errors import ConfigError, DataError, ModelError
from cudd_core.exchange import FORMATS, Bundle, read_set, write_export
from flows import imported
from flows.recipes import apply_overrides
from tests.flows.house import House, build

pytestmark = pytest.mark.usefixtures("prefect_server", "no_store_variables")

Summary = dict[str, Any]
MakeHome = Callable[[str], Path]

FORM = "as it is"
TINY = """
dataset: digits
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet2-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: logarithmic, ipc: 4, step: 2, block_size: 100, slices_per_shard: 5}
synthesis: {iterations: 2, batch_size: 10, jitter: 1, log_every: 2}
relabel: {epochs_per_shard: 2}
student: {training: {epochs: 1, batch_size: 16}}
evaluation: {seeds: 1, training: {epochs: 3, batch_size: 16}}
baselines: []
compute: {device: cpu, threads: 1, amp: "off"}
"""
ARCH = "convnet2-w8"


@pytest.fixture(scope="module")
def house(prefect_server: None, make_home: MakeHome) -> House:
    return build(make_home("export"), TINY, {FORM: ()})


@pytest.mark.parametrize("name", FORMATS)
def test_a_run_is_exported_in_every_format(house: House, name: str, tmp_path: Path) -> None:
    from flows.export import export

    manifest = export(house.run(FORM), name, tmp_path / "out", soft_labels=name == "imagefolder", store=house.store())
    assert manifest.digest == house.summaries[FORM]["dataset"]["digest"] and manifest.images == (40, 1, 8, 8)
    found = read_set(tmp_path / "out")
    assert found.synthetic.class_names == tuple(map(str, range(10)))
    assert sorted(set(found.synthetic.curricula.tolist())) == [1, 2]
    origin = manifest.origin
    assert (origin.recipe, origin.run, origin.config["data"]["root"]) == ("tiny", house.run(FORM), "")
    assert str(house.home) not in (tmp_path / "out" / "export.json").read_text()
    if name == "imagefolder":
        settings = json.loads((tmp_path / "out" / "soft_labels" / "labels.json").read_text())
        assert (settings["epochs"], settings["temperature"]) == (3, 20.0)
        assert settings["files"] == ["epochs-00000-00001.safetensors", "epochs-00002-00002.safetensors"]
        assert settings["teacher"] == ARCH and len(settings["mean"]) == len(settings["std"]) == 1


def test_folders_of_runs_and_of_sets_are_exported_too(house: House, tmp_path: Path) -> None:
    from flows.export import export
    from flows.inventory import fetch

    summary = tmp_path / "run"
    summary.mkdir()
    (summary / "summary.json").write_text(json.dumps(house.summaries[FORM]))
    first = export(str(summary), "rded", tmp_path / "one", store=house.store())
    fetch(house.run(FORM), "assemble", tmp_path, house.store())
    second = export(str(tmp_path / "assemble"), "sre2l", tmp_path / "two")
    third = export(str(tmp_path / "one"), "hf", tmp_path / "three")
    assert first.digest == second.digest == third.digest == house.summaries[FORM]["dataset"]["digest"]
    assert third.origin == first.origin and second.origin.run == ""
    with pytest.raises(ConfigError, match=r"--soft-labels: .* is a folder"):
        export(str(tmp_path / "one"), "hf", tmp_path / "four", soft_labels=True)
    (summary / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"summary\.json names no run"):
        export(str(summary), "hf", tmp_path / "four")
    assert not (tmp_path / "four").exists()


def test_a_run_that_is_not_finished_is_refused(house: House, tmp_path: Path) -> None:
    from flows.export import export

    store = house.store()
    began = json.loads(store.pipelines.read_text(house.run(FORM), "recipe.json"))
    began["config"]["seed"] = 7
    run = store.pipelines.start("stopped", {}, {})
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "recipe.json").write_text(json.dumps(began))
    store.pipelines.log_files(run, tmp_path / "recipe")
    store.pipelines.finish(run, "KILLED")
    with pytest.raises(ConfigError, match=r"no finished assemble output to export. Run the recipe to its end"):
        export(run, "hf", tmp_path / "out", store=store)
    assert not (tmp_path / "out").exists()


# ---- sets from folders, evaluated -----------------------------------------------------------------------------------


@pytest.fixture
def at_home(house: House, no_store_variables: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDD_HOME", str(house.home))


@pytest.mark.usefixtures("at_home")
def test_an_imported_export_gives_the_accuracy_of_the_run(house: House, tmp_path: Path) -> None:
    """Same images, same teacher, same seeds: labels and networks come out the same, bit for bit."""
    from flows.beginning import walk_run
    from flows.evaluate import evaluate, recipe_of_run
    from flows.export import export

    export(house.run(FORM), "rded", tmp_path / "out", store=house.store())
    summary = evaluate(run=str(tmp_path / "out"), seeds=1, overrides=["baselines=random"])
    assert summary["dataset"]["digest"] == house.summaries[FORM]["dataset"]["digest"]
    assert summary["accuracy"]["distilled"] == house.summaries[FORM]["accuracy"]["distilled"]
    assert summary["accuracy"]["teacher"] == house.summaries[FORM]["accuracy"]["teacher"]
    assert set(summary["accuracy"]) == {"teacher", "distilled", "random"}
    assert 0.5 < summary["imported"]["teacher_agreement"] <= 1
    assert summary["dataset"]["images"] == 40 and [each["ipc"] for each in summary["curricula"]] == [4]
    assert (house.home / "runs" / summary["mlflow_run_id"] / "report.png").is_file()
    # It distilled nothing: what follows a distillation's stages must not take it for one.
    for follow in (lambda run: recipe_of_run(run), lambda run: walk_run(run, house.store())):
        with pytest.raises(ConfigError, match="evaluated a set from a folder and distilled none"):
            follow(summary["mlflow_run_id"])
    folder = house.home / "runs" / summary["mlflow_run_id"]
    # Nor where the store does not know it.
    shutil.copytree(folder, tmp_path / "elsewhere")
    stranger = json.loads((folder / "summary.json").read_text()) | {"mlflow_run_id": "0" * 32}
    (tmp_path / "elsewhere" / "summary.json").write_text(json.dumps(stranger))
    for place in (folder, tmp_path / "elsewhere"):
        with pytest.raises(ConfigError, match="evaluated a set from a folder and distilled none"):
            recipe_of_run(str(place))
    page = (folder / "report.html").read_text()
    assert (
        f"cudd evaluate {tmp_path / 'out'} --recipe {folder / 'recipe.yaml'}" in page and "not made by this run" in page
    )
    assert "cudd distill" not in page and "The set grows in rounds" not in page
    # The command that the report gives does the same again, without computing anything.
    _, _, where, _, copy = shlex.split(summary["command"])
    repeated = evaluate(run=where, recipe=copy)
    assert (repeated["computed_tasks"], repeated["command"].split(" --")[0]) == (0, f"cudd evaluate {where}")
    # Again, without the manifest: nobody knows which originals these were, but the images are the same.
    (tmp_path / "out" / "export.json").unlink()
    again = evaluate(run=str(tmp_path / "out"), seeds=1, recipe=str(house.home / "tiny.yaml"))
    assert again["dataset"]["digest"] != summary["dataset"]["digest"]
    assert again["accuracy"]["distilled"] == summary["accuracy"]["distilled"]


@pytest.mark.usefixtures("at_home")
def test_a_run_whose_data_have_changed_is_not_evaluated_as_if_they_had_not(house: House) -> None:
    from flows.beginning import check_unchanged, read_beginning
    from flows.evaluate import recipe_of_run

    run = house.run(FORM)
    beginning = read_beginning(run, house.store())
    assert recipe_of_run(run) == beginning.recipe
    for split in ("train", "test"):
        other = dataclasses.replace(beginning, data=dataclasses.replace(beginning.data, **{split: "0" * 64}))
        with pytest.raises(ConfigError, match=rf"split '{split}' of .*not what it was when run {run} began"):
            check_unchanged(other, run)


@pytest.mark.usefixtures("at_home")
def test_a_folder_s_recipe_is_not_followed_where_the_store_does_not_know_its_run(house: House, tmp_path: Path) -> None:
    from flows.evaluate import recipe_of_run

    stranger = house.summaries[FORM] | {"mlflow_run_id": "0" * 32}
    (tmp_path / "summary.json").write_text(json.dumps(stranger))
    with pytest.raises(ConfigError, match=r"has no run '0+'.*summary\.json names it: set CUDD_HOME.*recipe\.yaml"):
        recipe_of_run(str(tmp_path))


@pytest.mark.usefixtures("at_home")
def test_a_run_of_another_version_keeps_its_set(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stays what it was for those who ask for it by its id, and nobody makes another set under that id."""
    from rich.console import Console

    from cudd_core import NUMERICS_VERSION
    from flows import inventory
    from flows.coverage import distilled_set
    from flows.evaluate import recipe_of_run
    from flows.export import export

    run, digest = house.run(FORM), house.summaries[FORM]["dataset"]["digest"]
    before = house.digests(FORM)
    recipe_of_run(run)
    monkeypatch.setattr("tasks.keys.NUMERICS_VERSION", NUMERICS_VERSION + 1)
    assert house.digests(FORM) == {name: before[name] for name in house.digests(FORM)}
    (part,) = inventory.fetch(run, "assemble", tmp_path / "parts", house.store())
    assert part.ref.digest == digest
    assert {part.group for part in inventory.fetch(run, "curriculum-1", tmp_path / "parts", house.store())} == {
        "curriculum 1"
    }
    Console(width=200).print(inventory.status(run, house.store()))
    said = capsys.readouterr().out
    assert "Made with another version of this software" in said and "missing:" not in said
    assert export(run, "rded", tmp_path / "out", store=house.store()).digest == digest
    assert export(run, "ddranking", tmp_path / "dd", store=house.store()).digest == digest
    with pytest.raises(ConfigError, match=r"--soft-labels.*another version"):
        export(run, "rded", tmp_path / "labels", soft_labels=True, store=house.store())
    train = json.loads(house.store().pipelines.read_text(run, "recipe.json"))["data"]["train"]
    for follow in (recipe_of_run, lambda run: distilled_set(house.store(), train, run)):
        with pytest.raises(ConfigError, match=f"another set would come out. `cudd export {run}"):
            follow(run)


@pytest.mark.usefixtures("at_home")
def test_a_sets_teacher_need_not_be_one_that_could_make_it(house: House, tmp_path: Path) -> None:
    """Without BatchNorm there is nothing for L_bn to match, but a set that exists only needs labels."""
    from flows.checks import check_data
    from flows.export import export
    from flows.imported import open_foreign_set

    export(house.run(FORM), "imagefolder", tmp_path / "out", store=house.store())
    foreign = open_foreign_set(tmp_path / "out", str(house.home / "tiny.yaml"), ["teacher.arch=convnet2-w8-in"])
    with pytest.raises(ModelError, match=r"synthesis\.weight_bn=0"):
        check_data(apply_overrides(foreign.recipe, ["synthesis.enabled=true"]))
    check_data(foreign.recipe, distils=False)


@pytest.mark.usefixtures("at_home")
def test_an_export_does_not_choose_folders_of_this_machine(house: House, tmp_path: Path) -> None:
    """Its recipe would say what is read, and downloaded to where."""
    from flows.evaluate import evaluate
    from flows.export import export

    export(house.run(FORM), "hf", tmp_path / "out", store=house.store())
    file, victim = tmp_path / "out" / "export.json", tmp_path / "victim"
    manifest = json.loads(file.read_text())
    config = manifest["origin"]["config"]
    config["data"] |= {"source": "torchvision", "name": "MNIST", "root": str(victim)}
    config["teacher"] |= {"source": "file", "weights": str(tmp_path / "mine.safetensors")}
    config["other_teachers"] = [config["teacher"] | {"weights": str(tmp_path / "other.safetensors")}]
    file.write_text(json.dumps(manifest))
    recipe = imported._recipe(tmp_path / "out", read_set(tmp_path / "out"), "")
    assert (recipe.data.root, recipe.data.name) == ("", "MNIST")
    assert {each.weights for each in (recipe.teacher, *recipe.other_teachers)} == {
        "mine.safetensors",
        "other.safetensors",
    }
    with pytest.raises(DataError, match=r"data\.root is empty"):
        evaluate(run=str(tmp_path / "out"))
    assert not victim.exists()


@pytest.mark.usefixtures("at_home")
def test_sets_that_do_not_fit_the_recipe_are_refused(house: House, tmp_path: Path) -> None:
    from flows.evaluate import evaluate
    from flows.export import export

    export(house.run(FORM), "imagefolder", tmp_path / "out", store=house.store())
    whole = read_set(tmp_path / "out").synthetic
    names = whole.class_names
    wrong = {
        "fewer": (replace(whole, class_names=(*names, "10")), "has 11 classes, but the data of recipe tiny has 10"),
        "turned": (replace(whole, class_names=names[::-1]), "the same classes in another order .* class 0 is '9'"),
        "others": (
            replace(whole, class_names=(*names[:9], "nine")),
            "other classes .* class 9 is 'nine' there and '9'",
        ),
        "colour": (replace(whole, images=whole.images.expand(-1, 3, -1, -1)), "images of 3 channels and 8 px"),
        "uneven": (
            replace(whole, **{k: v[1:] for k, v in vars(whole).items() if isinstance(v, torch.Tensor)}),
            "has 3 to 4 images in a class",
        ),
    }
    recipe = str(house.home / "tiny.yaml")
    for name, (each, message) in wrong.items():
        write_export(Bundle(each), "hf", tmp_path / name)
        with pytest.raises(DataError, match=message):
            evaluate(run=str(tmp_path / name), recipe=recipe)
    with pytest.raises(ConfigError, match=r"does not say what it was distilled from\. Add --recipe"):
        evaluate(run=str(tmp_path / "colour"))
    for setting, message in (
        ("schedule.ipc=3", "not distilled again"),
        ("synthesis.iterations=9", "not distilled again"),
        ("baselines=[random, herding]", "random real images or nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(run=str(tmp_path / "out"), overrides=[setting])
    with pytest.raises(ConfigError, match="--recipe and --set are for the folder of a set"):
        evaluate(run=house.run(FORM), recipe=recipe)
    shutil.rmtree(tmp_path / "out" / "train")
    with pytest.raises(DataError, match=r"\.png: missing"):
        evaluate(run=str(tmp_path / "out"))


@pytest.mark.usefixtures("at_home")
def test_a_set_with_more_images_than_the_data_is_evaluated_alone(house: House, tmp_path: Path) -> None:
    from flows.evaluate import evaluate
    from flows.export import export

    export(house.run(FORM), "imagefolder", tmp_path / "out", store=house.store())
    one = read_set(tmp_path / "out").synthetic
    parts = {k: torch.cat([v] * 40) for k, v in vars(one).items() if isinstance(v, torch.Tensor)}
    parts["slices"] = torch.arange(4 * 40).repeat_interleave(10)
    write_export(Bundle(replace(one, **parts)), "hf", tmp_path / "large")
    recipe = str(house.home / "tiny.yaml")
    with pytest.raises(
        ConfigError, match=r"has 160 images per class, but a class of the data has only \d+.*baselines="
    ):
        evaluate(run=str(tmp_path / "large"), recipe=recipe, overrides=["baselines=random"])
    summary = evaluate(run=str(tmp_path / "large"), recipe=recipe)
    assert summary["dataset"]["images"] == 1600 and set(summary["accuracy"]) == {"teacher", "distilled"}


# ---- the command line -----------------------------------------------------------------------------------------------


def cudd(*words: str) -> Any:
    from flows.cli import app

    return CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})


@pytest.mark.usefixtures("at_home")
def test_the_command(house: House, tmp_path: Path) -> None:
    from flows.cli import EXPORT_FORMATS

    assert tuple(FORMATS) == EXPORT_FORMATS
    words = ("export", house.run(FORM), "--to", str(tmp_path / "out"))
    done = cudd(*words, "--format", "imagefolder", "--soft-labels")
    assert done.exit_code == 0, done.output
    assert "40 images of 10 classes" in done.output and house.summaries[FORM]["dataset"]["digest"][:16] in done.output
    for more, message in (
        (("--format", "imagefolders"), "did you mean"),
        (("--format", "hf"), "holds an export already"),
    ):
        failed = cudd(*words, *more)
        assert failed.exit_code == 2 and message in failed.output.lower(), failed.output
    assert cudd(*words, "--format", "hf", "--force").exit_code == 0
    assert (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").is_file()
