"""The laboratories from end to end on a tiny run: real stages and a real store, tasks called here and now.

Prefect's server is left out; that its tasks come and go is what the tests of the main flow are about.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cudd_core.compute.runtime import Runtime
from cudd_core.data.corrupted import CorruptedSplit
from cudd_core.data.corruptions import applicable
from cudd_core.errors import ConfigError
from cudd_core.measurement import measure
from cudd_core.records import Accuracy, NetworkRecord
from cudd_core.reporting.tables import shown
from flows import continual, coverage, laboratory, robustness
from flows.checks import check_data
from flows.distill import pipeline
from flows.option_lists import numbers_of
from flows.prepare import log_recipe
from flows.recipe import Recipe
from flows.recipes import apply_overrides, get_recipe
from flows.results import Results
from flows.run import Round, Submitted
from flows.walk import Walk
from tasks.context import StageContext
from tasks.progress import stop_requested
from tasks.refs import Ref
from tasks.stage import fetch
from tasks.store import Store

ARCH = "convnet2-w8"
TINY = (
    *("data.limit_per_class=12", f"teacher.arch={ARCH}", "teacher.training.epochs=8", "teacher.minimum_margin=0"),
    *("schedule.ipc=3", "synthesis.iterations=2", "evaluation.training.epochs=4", "evaluation.seeds=2"),
)
SETS = ["distilled", "random", "selection"]


class Here(Walk):
    """A pipeline run whose tasks are called at once and compute, without Prefect's engine."""

    def gather(self, stage: str, tasks: Sequence[Submitted], current: Round | None = None) -> tuple[Ref, ...]:
        refs: list[Ref] = []
        for each in tasks:
            ref: Ref = each.future.state.data  # type: ignore[assignment]
            reused = each.future.state.name == "Reused"
            self.tally.add(stage, (0.0, 0.0), int(reused), [] if reused else [ref.key])
            refs.append(ref)
        return tuple(refs)


@dataclass(frozen=True)
class House:
    """A home folder, the recipe of a run in it, and what that run left."""

    home: Path
    run: Here
    recipe: Recipe
    results: Results

    def again(self) -> Here:
        return Here(self.run.context)


@pytest.fixture(scope="module")
def house(make_home: Callable[[str], Path]) -> Iterator[House]:
    stop_requested.clear()  # a flow that ran before leaves it set
    home = make_home("laboratory")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT"):
            patch.delenv(name, raising=False)
        patch.setenv("CUDD_HOME", str(home))
        patch.setattr("tasks.progress.UI_SECONDS", math.inf)  # there is no Prefect to show progress to
        recipe = apply_overrides(get_recipe("digits"), list(TINY))
        data, store = check_data(recipe), Store.from_environment(home).connect()
        run_id = store.pipelines.start("tiny", {}, {})
        log_recipe(store, run_id, recipe, data, {})
        run = Here(StageContext(store, data, recipe.compute, recipe.seed, run_id))
        yield House(home, run, recipe, pipeline(run, recipe))


def test_robustness(house: House) -> None:
    names, severities = ("gaussian_noise", "contrast"), (1, 5)
    run = house.again()
    found = robustness.find(run, house.recipe, house.results, names, severities)
    assert (run.tally.computed, run.tally.reused) == (4, 0)
    accuracy = found.document["accuracy"]
    assert list(accuracy) == ["teacher", *SETS]
    of = accuracy["distilled"][ARCH]
    every = of["by_corruption_and_severity"]
    for network in range(2):
        cells = [every[name][str(level)]["values"][network] for name in names for level in severities]
        assert of["mean"]["values"][network] == pytest.approx(sum(cells) / 4)
        by_contrast = [every["contrast"][str(level)]["values"][network] for level in severities]
        assert of["by_corruption"]["contrast"]["values"][network] == pytest.approx(sum(by_contrast) / 2)
    rows = list(csv.DictReader(io.StringIO(found.rows.csv())))
    # The teacher and two networks for each of three sets, on clean images and on 2 × 2 corrupted ones.
    assert len(rows) == (1 + 3 * 2) * (1 + 4)
    assert {row["severity"] for row in rows if row["corruption"] == "clean"} == {"0"}
    assert all(png.startswith(b"\x89PNG") for png in found.figures.values()) and len(found.figures) == 1
    json.dumps(found.document, allow_nan=False)

    again = house.again()
    wider = robustness.find(again, house.recipe, house.results, (*names, "fog"), severities)
    assert (again.tally.computed, again.tally.reused) == (2, 4)
    assert (
        wider.document["accuracy"]["random"][ARCH]["by_corruption"]["contrast"]
        == (accuracy["random"][ARCH]["by_corruption"]["contrast"])
    )


def test_every_accuracy_under_a_corruption_is_that_of_its_network(house: House) -> None:
    """In the document, in the rows and in the tables, by numbers of corruptions and severities that differ."""
    names, severities = ("gaussian_noise", "contrast"), (1, 3, 5)
    found = robustness.find(house.again(), house.recipe, house.results, names, severities)
    context, runtime = house.run.context, Runtime(house.recipe.compute)
    split = CorruptedSplit(context.test_images(), "gaussian_noise", 1, house.recipe.seed)
    accuracy, alone = found.document["accuracy"], dict[str, list[float]]()
    for method, by_arch in house.results.networks.items():
        networks = [fetch(context, ref, NetworkRecord) for ref in by_arch[ARCH]]
        alone[method] = [measure(network, split, runtime).accuracy for network in networks]
        of = accuracy[method][ARCH]
        assert of["by_corruption_and_severity"]["gaussian_noise"]["1"]["values"] == pytest.approx(alone[method])
        clean = [fetch(context, ref, Accuracy).accuracy for ref in house.results.evaluations[method][ARCH]]
        assert of["clean"]["values"] == clean
    assert list(alone) == SETS and len({value for values in alone.values() for value in values}) > 3
    told = [("teacher", accuracy["teacher"]), *((method, accuracy[method][ARCH]) for method in SETS)]
    rows = {tuple(row[:5]): row[5] for row in found.rows.rows}
    tables = [{row[0]: row[1:] for row in table.rows} for table in found.tables.values()]
    for column, (method, of) in zip((3, 0, 1, 2), told, strict=True):
        every = of["by_corruption_and_severity"]
        for number in range(of["clean"]["n"]):
            assert rows[method, ARCH, number, "clean", 0] == of["clean"]["values"][number]
            for level in severities:
                cells = [every[name][str(level)]["values"][number] for name in names]
                assert [rows[method, ARCH, number, name, level] for name in names] == cells
                assert of["by_severity"][str(level)]["values"][number] == pytest.approx(sum(cells) / 2)
        by_severity, by_corruption = tables
        assert [by_severity[f"severity {level}"][column] for level in severities] == [
            shown(of["by_severity"][str(level)]["values"]) for level in severities
        ]
        assert [by_corruption[name][column] for name in names] == [
            shown(of["by_corruption"][name]["values"]) for name in names
        ]
        assert by_severity["clean"][column] == shown(of["clean"]["values"])


def test_continual(house: House) -> None:
    run = house.again()
    found = continual.find(run, house.recipe, house.results, steps=2, seeds=2, archs=(ARCH,))
    assert run.tally.computed == 2 * (2 * 2 * 3)
    assert found.document["classes_seen"] == [5, 10]
    assert set(found.document["accuracy"]) == set(SETS)
    first, last = found.document["accuracy"]["distilled"][ARCH]
    assert first["n"] == last["n"] == 2
    # With all classes, in whatever order they came, a network is the run's own of that number.
    whole = robustness.find(house.again(), house.recipe, house.results, ("contrast",), (1,)).document["accuracy"]
    assert last["values"] == whole["distilled"][ARCH]["clean"]["values"]
    assert len(found.rows.rows) == 12 and len(found.figures) == 1
    json.dumps(found.document, allow_nan=False)


def test_coverage(house: House) -> None:
    labels = coverage.labels_of(house.recipe, ["3"])
    context = house.run.context
    other = coverage.distilled_set(context.store, context.data.train, context.pipeline_run)
    with pytest.raises(ConfigError, match="was distilled from other data"):
        coverage.distilled_set(context.store, "0" * 64, context.pipeline_run)
    assert [ref.digest for ref in other] == [ref.digest for ref in house.results.sets["distilled"]]
    sets = {**house.results.sets, "distilled again": other}
    found = coverage.find(house.again(), house.recipe, house.results.teacher.network, sets, labels, neighbours=3)
    scores = found.document["scores"]["3"]
    assert list(scores) == ["originals", *house.results.sets, "distilled again"]
    assert scores["distilled again"] == scores["distilled"] and set(scores["originals"]) == {"homogeneity"}
    assert found.document["images"]["3"] == {"originals": 12, **dict.fromkeys(sets, 3)}
    assert len(found.rows.rows) == 12 + 4 * 3
    json.dumps(found.document, allow_nan=False)


def test_findings_are_written_in_three_forms(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[laboratory.Findings] = []
    monkeypatch.setattr(laboratory, "_show_in_prefect", lambda _, findings: shown.append(findings))
    found = robustness.find(house.again(), house.recipe, house.results, ("contrast",), (1,))
    document = laboratory.publish(house.run, "robustness", "source", found)
    folder = house.home / "runs" / house.run.context.pipeline_run
    assert sorted(Path(file).name for file in document["files"]) == [
        *(f"robustness-{ARCH}.png", "robustness.csv", "robustness.json", "robustness.md")
    ]
    written = json.loads((folder / "robustness.json").read_text())
    assert written["source"] == "source" and written["accuracy"] == document["accuracy"] and shown == [found]
    assert "| contrast |" in (folder / "robustness.md").read_text()
    assert (
        house.run.context.store.pipelines.read_text(house.run.context.pipeline_run, "robustness.csv")
        == found.rows.csv()
    )


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "channels", "message"),
    [
        (["gausian_noise"], 3, "there is no 'gausian_noise'.*gaussian_noise"),
        (["saturate"], 1, "greyscale images have no colour"),
    ],
)
def test_corruptions_that_cannot_be(names: list[str], channels: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        robustness.check_corruptions(names, channels)
    robustness.check_corruptions(list(applicable(channels)), channels)


def test_severities_as_they_are_typed() -> None:
    assert numbers_of("1-5", "--severities") == [1, 2, 3, 4, 5]
    assert numbers_of("1,3,5", "--severities") == [1, 3, 5]
    for text in ("x", "1-", "-3", "1.5"):
        with pytest.raises(ConfigError, match="neither a number nor a range"):
            numbers_of(text, "--severities")
    for wrong in ([], [0], [6]):
        with pytest.raises(ConfigError, match="some of 1 to 5"):
            robustness.check_severities(wrong)


def test_a_class_that_the_data_has_not(house: House) -> None:
    with pytest.raises(ConfigError, match="no class 'three'"):
        coverage.labels_of(house.recipe, ["three"])
    assert coverage.labels_of(house.recipe, []) == {"0": 0}
