"""A tiny comparison on the embedded digits, with a real Prefect server and a real MLflow store."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cudd_core.comparison import HARD, OWN, PLAIN
from cudd_core.significance import kendall
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server", "no_store_variables")

ARCH = "convnet2-w8"
TINY = f"""
data: {{source: digits, image_size: 8, channels: 1}}
teacher:
  arch: {ARCH}
  training: {{learning_rate: 0.1, epochs: 3, batch_size: 64}}
schedule: {{ipc: 4, step: 2}}
synthesis: {{iterations: 2, batch_size: 10, jitter: 1}}
student: {{training: {{epochs: 2, batch_size: 16}}}}
evaluation: {{seeds: 2, training: {{epochs: 2, batch_size: 16}}}}
baselines: [random, herding]
"""
MakeHome = Callable[[str], Path]


def run(home: Path, **parameters: Any) -> dict[str, Any]:
    """Compare. The single runs' pictures, half of a tiny run's time, are test_distill.py's."""
    from flows.compare import compare
    from flows.summary import summarize

    recipe = home / "tiny.yaml"
    recipe.write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDD_HOME", str(home))
        patch.setenv("CUDD_SLOTS", "1")
        patch.setattr("flows.comparison.finish", summarize)
        return compare(recipes=[str(recipe)], **parameters)


@pytest.fixture(scope="module")
def first(prefect_server: None, make_home: MakeHome) -> tuple[Path, dict[str, Any]]:
    home = make_home("compare")
    return home, run(home, vary=["synthesis.weight_reg=1,0"], ranking=True)


def rows_of(summary: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    return [row for row in summary["rows"] if all(row[name] == value for name, value in wanted.items())]


def test_every_cell_is_in_the_table(first: tuple[Path, dict[str, Any]]) -> None:
    _, summary = first
    assert json.loads(json.dumps(summary)) == summary
    # Two distilled sets; random images and herding are the same for both.
    for protocol in (OWN, HARD, PLAIN):
        rows = rows_of(summary, protocol=protocol)
        assert sorted(row["method"] for row in rows) == ["distilled", "distilled", "herding", "random"]
        assert all(row["n"] == row["networks"] == 2 and 0 <= row["mean"] <= 1 for row in rows)
    for row in rows_of(summary, protocol=OWN):
        (random,) = rows_of(summary, protocol=OWN, method="random")
        assert row["method"] == "random" or row["margin"] == pytest.approx(row["mean"] - random["mean"])
        assert row["lrs"] is not None and row["ars"] is not None
        assert row["full_data"] == row["teacher"] and row["image_bytes"] > 1000 and row["label_bytes"] > 1000
        assert row["seconds"] > 0
    assert all(row["label_bytes"] == 0 for row in rows_of(summary, protocol=HARD))
    # The first value is the reference; herding is held against it, too.
    without = [row["method"] for row in rows_of(summary, protocol=OWN) if row["difference"] is None]
    assert without == ["distilled"]
    assert summary["failures"] == [] and [each["boundaries"] for each in summary["variants"]] == [[2, 4]] * 2


def test_stages_are_timed_by_group(first: tuple[Path, dict[str, Any]]) -> None:
    _, summary = first
    costs = summary["variants"][0]["seconds"]
    assert set(costs) == {"distilled", "random", "herding"}
    assert set(costs["distilled"]) == {
        *("select", "synthesize", "student labels", "students", "classify", "labels", "evaluation"),
    }
    assert set(costs["herding"]) == {"classify", "select", "synthesize", "labels", "evaluation"}
    assert all(seconds > 0 for groups in costs.values() for seconds in groups.values())


def test_it_is_stored_in_mlflow_with_its_variants_nested_and_shown_in_prefect(
    first: tuple[Path, dict[str, Any]],
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    home, summary = first
    store = Store.from_environment(home).connect()
    found = store.client.get_run(summary["mlflow_run_id"])
    assert found.info.status == "FINISHED" and found.info.run_name == "compare tiny"
    files = {file.path for file in store.client.list_artifacts(found.info.run_id)}
    assert {"comparison.md", "comparison.csv", "comparison.html", "margins.png", "cost.png", "summary.json"} <= files
    assert json.loads(store.pipelines.read_text(found.info.run_id, "summary.json")) == summary
    nested = store.pipelines.search(f"tags.`mlflow.parentRunId` = '{found.info.run_id}'")
    assert {each.info.run_id for each in nested} == {run for each in summary["variants"] for run in each["runs"]}
    assert {each.info.status for each in nested} == {"FINISHED"}
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(summary["run_id"])]))
    with get_client(sync_client=True) as client:
        (table,) = [each for each in client.read_artifacts(artifact_filter=chosen) if each.type == "table"]
    assert len(json.loads(str(table.data))) == len(summary["rows"])


def test_cells_are_reused_and_what_is_added_is_computed(first: tuple[Path, dict[str, Any]]) -> None:
    home, summary = first
    again = run(home, vary=["synthesis.weight_reg=1,0"], ranking=True)
    assert again["computed_tasks"] == 0 and again["rows"] == summary["rows"]
    # The distillation with the recipe's seed is the one that is there; the other one's unit is a distillation, too.
    repeated = run(home, repeats=2)
    assert repeated["variants"][0]["seeds"] == [0, 1]
    assert repeated["variants"][0]["digests"][0] == summary["variants"][0]["digests"][0]
    own = rows_of(repeated, method="distilled")[0]
    before = rows_of(summary, method="distilled", protocol=OWN)[0]
    assert own["networks"] == 4 and own["n"] == 2 and own["values"][0] == pytest.approx(before["mean"])


def test_the_order_of_architectures_is_held_against_all_of_the_data(first: tuple[Path, dict[str, Any]]) -> None:
    home, _ = first
    archs = [ARCH, "convnet2-w4", "convnet1-w4"]
    summary = run(home, archs=archs, baselines=["random"], seeds=1, full_data=True)
    for method in ("distilled", "random"):
        rows = rows_of(summary, method=method)
        assert [row["arch"] for row in rows] == archs and all(row["full_data"] is not None for row in rows)
        found = kendall([row["mean"] for row in rows], [row["full_data"] for row in rows])
        assert {(row["tau"], row["tau_archs"], row["tau_p"]) for row in rows} == {(found.tau, 3, None)}
    text = (home / "runs" / summary["mlflow_run_id"] / "comparison.md").read_text()
    assert "## Order of the architectures" in text


def test_a_variant_that_fails_leaves_the_others_their_lines(make_home: MakeHome) -> None:
    from flows.run import StagesFailed

    home = make_home("failing")
    with pytest.raises(StagesFailed, match=r"(?s)1 variant\(s\) have no results.*minimum_margin=0.999") as caught:
        failing(home)
    store = Store.from_environment(home).connect()
    (comparison,) = store.pipelines.search("tags.`cudd.comparison` = 'tiny'")
    assert comparison.info.status == "FAILED"
    # The command line copies nothing and shows no table of a comparison that failed, so its message says where it is.
    folder = home / "runs" / comparison.info.run_id
    assert f"table is in {folder} " in str(caught.value) and (folder / "comparison.md").is_file()
    stored = json.loads(store.pipelines.read_text(comparison.info.run_id, "summary.json"))
    assert [each["variant"] for each in stored["failures"]] == ["teacher.minimum_margin=0.999"]
    assert {row["variant"] for row in stored["rows"]} == {"teacher.minimum_margin=0"}


def failing(home: Path, settings: Sequence[str] = ("evaluation.seeds=1", "baselines=")) -> None:
    run(home, vary=["teacher.minimum_margin=0,0.999"], overrides=list(settings))
