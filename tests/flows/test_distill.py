"""The whole flow on the embedded digits, with a real Prefect server and real MLflow stores."""

from __future__ import annotations

import csv
import json
import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from cudd_core.compute.runtime import Runtime
from cudd_core.data import open_split
from cudd_core.errors import Cancelled, ModelError
from cudd_core.measurement import measure
from cudd_core.records import NetworkRecord
from flows.recipes import apply_overrides, find_recipe, get_recipe
from flows.results import IMPORTED
from flows.run import StagesFailed
from flows.summary import command_of
from tasks import progress
from tasks.pipeline_runs import RUNS_EXPERIMENT
from tasks.store import STAGES_EXPERIMENT, Store

pytestmark = pytest.mark.usefixtures("prefect_server", "no_store_variables")

Summary = dict[str, Any]
MakeHome = Callable[[str], Path]

TINY = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet2-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: logarithmic, ipc: 10, step: 5, block_size: 100, slices_per_shard: 5}
synthesis: {iterations: 5, batch_size: 10, jitter: 1, log_every: 2}
relabel: {epochs_per_shard: 100}
student: {training: {epochs: 4, batch_size: 16}}
evaluation: {training: {epochs: 4, batch_size: 16}}
baselines: [random, selection]
compute: {device: cpu, threads: 1, amp: "off"}
"""
"""A recipe file of its own: what the named recipes say may change."""

FULL = ("evaluation.seeds=2",)
BARE = ("evaluation.seeds=1", "baselines=")
"""The same curricula with as little behind them as there can be."""
BARE_TASKS = 15
ARCH = "convnet2-w8"
SECRETS = {
    name: f"planted-{name.lower()}-9f86d081"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "MLFLOW_TRACKING_PASSWORD")
}
"""In the environment of the first run; nothing that it leaves may hold them."""
STAGES = {
    *("squeeze", "preflight", "classify", "select", "synthesize", "relabel"),
    *("train_student", "assemble", "measure", "train_network", "report"),
}


@dataclass(frozen=True)
class House:
    """A home folder and the first run in it."""

    home: Path
    summary: Summary

    def store(self) -> Store:
        return Store.from_environment(self.home).connect()


def distil(home: Path, settings: Sequence[str], *, slots: int = 1, force: Sequence[str] = ()) -> Summary:
    """Run the flow. Its pictures, half of a tiny run's time, are left to the first run: `with_pictures`."""
    from flows.distill import distill
    from flows.summary import summarize

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDD_HOME", str(home))
        patch.setenv("CUDD_SLOTS", str(slots))
        patch.setattr("flows.distill.finish", summarize)
        return distill(recipe=recipe_file(home), overrides=list(settings), force_stages=list(force))


def with_pictures(home: Path, settings: Sequence[str]) -> Summary:
    from flows.distill import distill

    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT"):
            patch.delenv(name, raising=False)
        patch.setenv("CUDD_HOME", str(home))
        patch.setenv("CUDD_SLOTS", "1")
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        return distill(recipe=recipe_file(home), ipc=10, overrides=list(settings))


def recipe_file(home: Path) -> str:
    file = home / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


@pytest.fixture(scope="module")
def first(prefect_server: None, make_home: MakeHome) -> House:
    home = make_home("first")
    return House(home, with_pictures(home, FULL))


# ---- what MLflow and Prefect know -----------------------------------------------------------------------------------


def runs_of(store: Store, experiment: str, text: str = "") -> list[Any]:
    """MLflow runs, newest first."""
    found = store.client.get_experiment_by_name(experiment)
    assert found is not None
    return list(store.client.search_runs([found.experiment_id], text, order_by=["attributes.start_time DESC"]))


def nested_runs(store: Store, parent: str) -> dict[str, Any]:
    found = runs_of(store, RUNS_EXPERIMENT, f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run for run in found}


def assert_none_running(store: Store) -> None:
    for experiment in (RUNS_EXPERIMENT, STAGES_EXPERIMENT):
        assert runs_of(store, experiment, "attributes.status = 'RUNNING'") == []


def inputs_of(run: Any) -> list[tuple[str, str, str, bool]]:
    """(stage, key, MLflow run id, reused) of what a run was linked to."""
    rows = []
    for each in run.inputs.dataset_inputs:
        source = json.loads(each.dataset.source)
        tags = {tag.key: tag.value for tag in each.tags}
        rows.append((each.dataset.name, source["key"], source["run_id"], tags["cudd.reused"] == "true"))
    return rows


def artifact_folder(store: Store, run_id: str) -> Path:
    uri: str = store.client.get_run(run_id).info.artifact_uri
    return Path(uri.removeprefix("file://"))


def task_states(flow_run: str, count: int) -> list[tuple[str, str]]:
    """(task run name, state name) as Prefect shows them; the server hears of them a little later."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import TaskRunSort

    deadline = time.monotonic() + 60
    chosen = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(flow_run)]))
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=chosen, sort=TaskRunSort.END_TIME_DESC, limit=200)
            states = [(str(run.name), str(run.state_name)) for run in found]
            ended = [state for _, state in states if state in ("Completed", "Reused", "Failed")]
            if len(ended) == len(states) == count or time.monotonic() > deadline:
                return states
            time.sleep(0.2)


def artifacts_of(flow_run: str) -> list[Any]:
    """Prefect's artifacts of a flow run and of its tasks."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.client.schemas.sorting import ArtifactSort

    with get_client(sync_client=True) as client:
        chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run)]))
        return list(client.read_artifacts(artifact_filter=chosen, sort=ArtifactSort.CREATED_DESC, limit=200))


# ---- one run --------------------------------------------------------------------------------------------------------


def test_summary_is_the_contract(first: House) -> None:
    summary = first.summary
    assert set(summary) == {
        *("recipe", "config", "command", "run_id", "mlflow_run_id", "tracking_uri", "reused_tasks", "computed_tasks"),
        *("curricula", "dataset", "accuracy", "seconds", "evaluation_steps", "peak_memory_bytes", "device", "versions"),
    }
    assert json.loads(json.dumps(summary)) == summary
    # The recipe is a file of somebody's own: what makes it again is a copy that lies beside the report.
    copy = first.home / "runs" / summary["mlflow_run_id"] / "recipe.yaml"
    assert summary["command"] == f"cudd distill {copy}"
    assert find_recipe(str(copy)).model_dump(mode="json") == summary["config"]
    assert command_of(get_recipe("digits"), copy, {}) == "cudd distill digits"
    changed = apply_overrides(get_recipe("digits"), ["seed=1", "evaluation.archs=convnet3,resnet18"])
    words = "cudd distill digits --set seed=1 --set evaluation.archs=convnet3,resnet18"
    assert command_of(changed, copy, {}) == words
    many = [f"student.training.{name}" for name in ("epochs=3", "batch_size=9", "learning_rate=0.1", "ema_decay=0.5")]
    many += [f"evaluation.{each.removeprefix('student.')}" for each in many] + ["seed=1"]
    assert command_of(apply_overrides(get_recipe("digits"), many), copy, {}) == f"cudd distill {copy}"
    cifar = apply_overrides(get_recipe("cifar10-ipc10"), ["data.root=/a b"])
    assert command_of(cifar, copy, {}) == "cudd distill cifar10-ipc10 --set 'data.root=/a b'"
    evaluated = apply_overrides(get_recipe("digits"), ["schedule.ipc=3"])
    assert command_of(evaluated, copy, {IMPORTED: {"folder": "/a b"}}) == f"cudd evaluate '/a b' --recipe {copy}"
    assert summary["recipe"] == "tiny" and summary["config"]["teacher"]["arch"] == ARCH
    assert UUID(summary["run_id"])
    assert summary["tracking_uri"] == f"sqlite:///{first.home / 'mlflow.db'}"
    assert (summary["reused_tasks"], summary["computed_tasks"]) == (0, 33)
    assert set(summary["seconds"]) == STAGES and summary["seconds"]["train_network"] > 0
    assert 1e8 < summary["peak_memory_bytes"] < 1e11 and "thread" in summary["device"]
    assert {"python", "cudd", "torch", "torchvision", "prefect", "mlflow"} <= set(summary["versions"])
    dataset = summary["dataset"]
    assert set(dataset) == {"uri", "digest", "images", "classes", "image_bytes", "label_bytes"}
    assert (dataset["images"], dataset["classes"]) == (100, 10)
    assert dataset["image_bytes"] > 1000 and dataset["label_bytes"] > 1000
    assert len(dataset["digest"]) == 64 and dataset["uri"].startswith("runs:/")


def test_curricula_of_the_summary(first: House) -> None:
    curricula = first.summary["curricula"]
    assert [(each["index"], each["ipc"]) for each in curricula] == [(1, 5), (2, 10)]
    for each in curricula:
        assert set(each) == {"index", "ipc", "tiers", "student_accuracy", "student_steps", "seconds"}
        assert set(each["seconds"]) == {"classify", "select", "synthesize", "relabel", "train_student"}, "no others ran"
        # Five slices of ten classes each.
        assert sum(each["tiers"].values()) == 50 and each["tiers"]["any"] == 0
    assert curricula[0]["tiers"]["right"] == 0, "without a student, W is everything"
    assert 0 <= curricula[0]["student_accuracy"] <= 1
    assert curricula[1]["student_accuracy"] is None, "the last student teaches nobody"
    # Four epochs of 50 and of 100 images, 16 a batch.
    assert [each["student_steps"] for each in curricula] == [16, None]
    assert first.summary["evaluation_steps"] == 28


def test_accuracies_of_the_summary(first: House) -> None:
    accuracy = dict(first.summary["accuracy"])
    assert 0.5 < accuracy.pop("teacher") <= 1
    assert set(accuracy) == {"distilled", "random", "selection"}
    for by_arch in accuracy.values():
        assert set(by_arch) == {ARCH}
        measured = by_arch[ARCH]
        assert measured["n"] == len(measured["values"]) == 2
        assert measured["mean"] == statistics.fmean(measured["values"])
        assert measured["std"] == statistics.stdev(measured["values"])
        assert 0 < measured["balanced"] <= 1


def test_what_the_summary_says_of_a_set_is_that_set_s(first: House) -> None:
    """Networks measured anew, by the names that their trainings had; and the bytes of what is stored."""
    from flows.beginning import walk_run

    summary, store = first.summary, first.store()
    walked = walk_run(summary["mlflow_run_id"], store)
    parts = {part.title: part for part in walked.parts}
    split, runtime = open_split(walked.recipe.data, walked.recipe.data.test_split), Runtime(walked.recipe.compute)

    def anew(title: str) -> float:
        network = store.fetch(parts[title].ref)
        assert isinstance(network, NetworkRecord)
        return measure(network, split, runtime).accuracy

    for method in ("distilled", "random", "selection"):
        found = [anew(f"train network {method} {ARCH} #{number}") for number in range(2)]
        assert found == summary["accuracy"][method][ARCH]["values"]
    assert anew(f"squeeze {ARCH}") == summary["accuracy"]["teacher"]
    assert [anew("train student 1")] == [each["student_accuracy"] for each in summary["curricula"][:1]]
    labels = [part.ref.bytes for title, part in parts.items() if title.startswith("relabel distilled ")]
    assert summary["dataset"]["label_bytes"] == sum(labels)
    assert summary["dataset"]["image_bytes"] == parts["assemble"].ref.bytes


def test_pipeline_run_holds_report_and_summary(first: House) -> None:
    store, run_id = first.store(), first.summary["mlflow_run_id"]
    run = store.client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "distill tiny"
    assert run.data.params["synthesis.iterations"] == "5" and run.data.params["schedule.ipc"] == "10"
    assert run.data.tags["cudd.prefect_flow_run"] == first.summary["run_id"]
    assert run.data.metrics["teacher_accuracy"] == first.summary["accuracy"]["teacher"]
    assert json.loads(store.pipelines.read_text(run_id, "summary.json")) == first.summary
    folder = artifact_folder(store, run_id)
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8").lower()


def test_accuracies_by_class_average_to_those_of_the_summary(first: House) -> None:
    written = first.store().pipelines.read_text(first.summary["mlflow_run_id"], "classes.csv")
    rows = list(csv.DictReader(written.splitlines()))
    images = [int(row["test_images"]) for row in rows]
    assert [row["class"] for row in rows] == [str(digit) for digit in range(10)] and len(set(images)) > 1
    accuracy = first.summary["accuracy"]
    for method in ("distilled", "random", "selection"):
        shares, found = [float(row[f"{method} {ARCH}"]) for row in rows], accuracy[method][ARCH]
        assert found["balanced"] == pytest.approx(statistics.fmean(shares))
        assert found["mean"] == pytest.approx(sum(s * n for s, n in zip(shares, images, strict=True)) / sum(images))
    whole = sum(float(row["teacher"]) * n for row, n in zip(rows, images, strict=True))
    assert accuracy["teacher"] == pytest.approx(whole / sum(images))


def test_curricula_are_nested_runs_with_curves_and_lineage(first: House) -> None:
    store = first.store()
    nested = nested_runs(store, first.summary["mlflow_run_id"])
    assert set(nested) == {"curriculum 1", "curriculum 2", "random 1"}
    assert {run.info.status for run in nested.values()} == {"FINISHED"}
    stages = {name: Counter(stage for stage, *_ in inputs_of(run)) for name, run in nested.items()}
    assert stages == {
        "curriculum 1": Counter(select=1, synthesize=1, relabel=1, train_student=1),
        "curriculum 2": Counter(classify=1, select=1, synthesize=1),
        "random 1": Counter(select=1, keep=2),
    }
    for run in nested.values():
        for stage, key, run_id, reused in inputs_of(run):
            assert run.data.tags[f"cudd.stage.{stage}.{key[:16]}"] == run_id and not reused
            assert store.client.get_run(run_id).info.status == "FINISHED"
    one = nested["curriculum 1"]
    assert len(store.client.get_metric_history(one.info.run_id, "student_loss")) == 4
    assert one.data.metrics["tier_right_and_wrong"] == first.summary["curricula"][0]["tiers"]["right_and_wrong"]
    assert (artifact_folder(store, one.info.run_id) / "grid.png").read_bytes().startswith(b"\x89PNG")
    parent = {stage for stage, *_ in inputs_of(store.client.get_run(first.summary["mlflow_run_id"]))}
    assert parent >= {"squeeze", "preflight", "assemble", "train_network", "measure", "report"}


def test_shards_hold_images_preview_and_loss_curves(first: House) -> None:
    store = first.store()
    shards = runs_of(store, STAGES_EXPERIMENT, "tags.`cudd.stage` = 'synthesize' and attributes.status = 'FINISHED'")
    assert len(shards) >= 2
    for run in shards:
        folder = artifact_folder(store, run.info.run_id)
        assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / "data" / "train-00000-of-00001.parquet").is_file()
        assert {"loss_ce", "loss_bn", "loss_reg"} <= set(run.data.metrics)
        assert run.data.tags["cudd.pipeline_run"]
    assert_none_running(store)


def test_prefect_shows_tasks_and_the_closing_table(first: House) -> None:
    states = task_states(first.summary["run_id"], 33)
    assert Counter(state for _, state in states) == {"Completed": 33}
    assert {
        "synthesize slices 0-4, classes 0-9",
        "train student 1",
        f"train network random {ARCH} #1",
        f"measure random {ARCH} #1",
    } <= {name for name, _ in states}
    (table,) = [each for each in artifacts_of(first.summary["run_id"]) if each.type == "table"]
    rows = json.loads(str(table.data))
    assert [row["method"] for row in rows] == ["teacher (all data)", "distilled", "random", "selection"]
    mean, std = (100 * first.summary["accuracy"]["distilled"][ARCH][name] for name in ("mean", "std"))
    assert rows[1]["accuracy"] == f"{mean:.2f} ± {std:.2f}"


def test_no_credential_is_left_behind(first: House) -> None:
    """In files, databases, parameters, tags, logs and artifacts: all of them lie in the home or in Prefect's."""
    from prefect.settings import PREFECT_HOME

    found = [
        file
        for folder in (first.home, PREFECT_HOME.value())
        for file in folder.rglob("*")
        if file.is_file() and any(secret.encode() in file.read_bytes() for secret in SECRETS.values())
    ]
    assert found == []
    assert sum(file.is_file() for file in first.home.rglob("*")) > 100


# ---- again, elsewhere, larger ---------------------------------------------------------------------------------------


def test_second_run_computes_nothing(first: House) -> None:
    again = distil(first.home, FULL)
    # All but the pictures, which `distil` leaves out.
    assert (again["computed_tasks"], again["reused_tasks"]) == (0, 32)
    assert again["dataset"] == first.summary["dataset"]
    assert again["accuracy"] == first.summary["accuracy"]
    assert again["mlflow_run_id"] != first.summary["mlflow_run_id"]
    assert Counter(state for _, state in task_states(again["run_id"], 32)) == {"Reused": 32}
    nested = nested_runs(first.store(), again["mlflow_run_id"])
    assert all(reused for run in nested.values() for *_, reused in inputs_of(run))


def test_stopped_run_in_another_home_goes_on_to_the_same_bytes(first: House, make_home: MakeHome) -> None:
    home = make_home("second")
    house = House(home, {})
    drawn: list[tuple[str, float, int]] = []

    def stop_at_synthesis(reporter: progress.Reporter, done: float, total: int, metrics: Mapping[str, float]) -> None:
        drawn.append((reporter.title, done, total))
        if reporter.title.startswith("synthesize"):
            progress.stop_requested.set()

    progress.draw_on(stop_at_synthesis)
    try:
        # One step is logged at the first iteration and one at the last: the stop is seen in between.
        with pytest.raises(Cancelled, match="synthesize slices 0-4, classes 0-9"):
            distil(home, BARE)
    finally:
        progress.draw_on(None)
    assert ("squeeze convnet2-w8", 3, 3) in drawn
    (run,) = runs_of(house.store(), RUNS_EXPERIMENT, "tags.`cudd.recipe` = 'tiny'")
    assert run.info.status == "KILLED"
    assert {each.info.status for each in nested_runs(house.store(), run.info.run_id).values()} == {"KILLED"}
    assert_none_running(house.store())

    resumed = distil(home, BARE, slots=4)
    # squeeze, preflight, classify and select were finished.
    assert (resumed["reused_tasks"], resumed["computed_tasks"]) == (4, BARE_TASKS - 4)
    assert resumed["dataset"]["digest"] == first.summary["dataset"]["digest"]
    assert resumed["curricula"][1]["tiers"] == first.summary["curricula"][1]["tiers"]
    assert resumed["accuracy"]["distilled"][ARCH]["values"] == [
        first.summary["accuracy"]["distilled"][ARCH]["values"][0]
    ]


def test_growing_ipc_keeps_the_curricula_there_are(first: House) -> None:
    store = first.store()
    before = nested_runs(store, first.summary["mlflow_run_id"])
    grown = distil(first.home, [*BARE, "schedule.ipc=20"])
    assert [each["ipc"] for each in grown["curricula"]] == [5, 10, 20]
    assert grown["dataset"]["images"] == 200
    after = nested_runs(store, grown["mlflow_run_id"])
    for name in ("curriculum 1", "curriculum 2"):
        links = {(stage, key): (run_id, reused) for stage, key, run_id, reused in inputs_of(after[name])}
        for stage, key, _, _ in inputs_of(before[name]):
            found = store.lookup(key)
            assert found is not None and links[stage, key] == (found.run_id, True)
    stages = Counter((stage, reused) for stage, *_, reused in inputs_of(after["curriculum 3"]))
    assert stages == Counter({("classify", False): 1, ("select", False): 1, ("synthesize", False): 2})
    assert grown["reused_tasks"] >= 11
    assert sum(grown["curricula"][2]["tiers"].values()) == 100


def test_force_computes_that_stage_alone(first: House) -> None:
    forced = distil(first.home, BARE, force=["synthesize"])
    assert (forced["reused_tasks"], forced["computed_tasks"]) == (BARE_TASKS - 2, 2)
    computed = {name for name, state in task_states(forced["run_id"], BARE_TASKS) if state == "Completed"}
    assert computed == {"synthesize slices 0-4, classes 0-9", "synthesize slices 5-9, classes 0-9"}
    assert forced["dataset"]["digest"] == first.summary["dataset"]["digest"]


# ---- damage and failure ---------------------------------------------------------------------------------------------


def test_damaged_and_deleted_artifacts_are_computed_again(first: House) -> None:
    store = first.store()

    def folder(nested: str, stage: str) -> Path:
        """Where the present output of that stage of a nested run lies."""
        run = nested_runs(store, first.summary["mlflow_run_id"])[nested]
        (key,) = [key for name, key, *_ in inputs_of(run) if name == stage]
        found = store.lookup(key)
        assert found is not None
        return artifact_folder(store, found.run_id)

    shard = folder("curriculum 1", "synthesize") / "data" / "train-00000-of-00001.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    shutil.rmtree(folder("curriculum 2", "select"))
    (folder("curriculum 1", "train_student") / "tensors.safetensors").unlink()

    mended = distil(first.home, BARE)
    states = task_states(mended["run_id"], BARE_TASKS)
    computed = sorted(name for name, state in states if state != "Reused")
    assert computed == ["select slices 5-9, classes 0-9", "synthesize slices 0-4, classes 0-9", "train student 1"]
    assert mended["computed_tasks"] == 3
    assert mended["dataset"]["digest"] == first.summary["dataset"]["digest"]
    assert_none_running(store)


def test_failing_stage_keeps_what_was_done(first: House, monkeypatch: pytest.MonkeyPatch) -> None:
    store = first.store()
    before = {run.info.run_id for run in runs_of(store, STAGES_EXPERIMENT)}
    monkeypatch.setattr(progress, "UI_SECONDS", 0.0)
    seen = []
    for margin in (0.999, 0.9985):
        with pytest.raises(ModelError, match=r"teacher\.minimum_margin asks for"):
            distil(first.home, [*BARE, "teacher.training.epochs=2", f"teacher.minimum_margin={margin}"])
        newest = runs_of(store, RUNS_EXPERIMENT)[0]
        assert newest.info.status == "FAILED"
        assert nested_runs(store, newest.info.run_id) == {}
        flow_run = newest.data.tags["cudd.prefect_flow_run"]
        seen.append(sorted(state for _, state in task_states(flow_run, 2)))
        made = [run for run in runs_of(store, STAGES_EXPERIMENT) if run.info.run_id not in before]
        ended = Counter((run.data.tags["cudd.stage"], run.info.status) for run in made)
        assert ended == {("squeeze", "FINISHED"): 1, ("preflight", "FAILED"): len(seen)}
        assert "minimum_margin" in made[0].data.tags["cudd.reason"]
        if margin == 0.999:
            bars = [each for each in artifacts_of(flow_run) if each.type == "progress"]
            assert ("squeeze convnet2-w8", 100.0) in [(bar.description, bar.data) for bar in bars]
    assert seen == [["Completed", "Failed"], ["Failed", "Reused"]]
    assert_none_running(store)


@pytest.mark.parametrize("baseline", ["random", "sre2l"])
def test_baselines_wait_for_verdicts_only_if_they_ask_for_them(
    baseline: str, first: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def classify(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("no verdicts today")

    store = first.store()
    before = {run.info.run_id for run in runs_of(store, STAGES_EXPERIMENT)}
    monkeypatch.setattr("cudd_core.stages.classify.classify", classify)
    settings = ("evaluation.seeds=1", "evaluation.training.epochs=3", f"baselines=[{baseline}]")
    with pytest.raises(StagesFailed, match="no verdicts today"):
        distil(first.home, settings, force=["classify"])
    made = [run for run in runs_of(store, STAGES_EXPERIMENT) if run.info.run_id not in before]
    ended = Counter((run.data.tags["cudd.stage"], run.info.status) for run in made)
    of_random = {("train_network", "FINISHED"): 1, ("measure", "FINISHED"): 1}
    asked_nothing = {name: count for name, count in ended.items() if name[0] in ("train_network", "measure")}
    assert asked_nothing == (of_random if baseline == "random" else {})
    assert ended["classify", "FAILED"] == 1
    assert_none_running(store)


# ---- status, fetch, gc ----------------------------------------------------------------------------------------------


def shown(renderable: object) -> str:
    from rich.console import Console

    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_walk_finds_exactly_what_the_run_stored(first: House) -> None:
    from flows.beginning import walk_run
    from flows.walk import made_by

    store, run = first.store(), first.summary["mlflow_run_id"]
    walked = walk_run(run, store)
    recipe, parts = walked.recipe, walked.parts
    assert not walked.historic
    assert recipe.model_dump(mode="json") == first.summary["config"]
    assert len({part.name for part in parts}) == len(parts) == first.summary["computed_tasks"]
    assert {part.standing for part in parts} == {"stored"}
    assert sum(part.ref.digest == first.summary["dataset"]["digest"] for part in parts) == 1
    names = {part.name for part in parts}
    assert {"squeeze/convnet2-w8", "curriculum-1/synthesize/slices-0-4-classes-0-9", "assemble"} <= names
    # What the tests above made anew belongs to their runs.
    assert any(made_by(part, run) for part in parts)


def test_status_shows_what_is_there_and_what_is_not(first: House, make_home: MakeHome) -> None:
    from flows import inventory

    store, run = first.store(), first.summary["mlflow_run_id"]
    whole = shown(inventory.status(run, store))
    assert "missing:" not in whole and "curriculum 2" in whole and "random 1" in whole
    home = make_home("status")
    with pytest.raises(ModelError):
        distil(home, [*BARE, "teacher.minimum_margin=0.999"])
    store = Store.from_environment(home).connect()
    (stopped,) = runs_of(store, RUNS_EXPERIMENT, "tags.`cudd.recipe` = 'tiny'")
    text = shown(inventory.status(stopped.info.run_id, store))
    assert stopped.info.run_id in shown(inventory.latest(store))
    assert "failed: preflight: ModelError" in text and "minimum_margin" in text
    assert "missing: curriculum-2/synthesize/slices-5-9-classes-0-9" in text
    # All but the teacher and what failed; and the pictures.
    assert text.count("missing: ") == BARE_TASKS - 2 + 1
    detailed = shown(inventory.status(stopped.info.run_id, store, blocks=True))
    ends = Counter(line.split()[-1] for line in detailed.splitlines() if line.split())
    assert ends["missing"] == BARE_TASKS - 2 + 1 and ends["done"] == ends["failed"] == 1 and "missing:" not in detailed
    assert ["curriculum", "2", "synthesize", "slices-5-9-classes-0-9", "missing"] in map(
        str.split, detailed.split("\n")
    )


def test_status_lists_blocks_below_the_table(first: House) -> None:
    from flows import inventory
    from flows.beginning import walk_run

    store, run = first.store(), first.summary["mlflow_run_id"]
    table, detailed = (shown(inventory.status(run, store, blocks)).splitlines() for blocks in (False, True))
    assert detailed[: len(table)] == table, "the table stays"
    heading, *rows = (line.split() for line in detailed[len(table) :])
    assert heading[-1] == "standing" and {row[-1] for row in rows} <= {"done", "reused"}
    assert len(rows) == len(walk_run(run, store).parts)
    places = [" ".join(row[:2]) for row in rows]
    assert list(dict.fromkeys(places)) == ["whole run", "curriculum 1", "curriculum 2", "random 1"]


def test_parts_of_a_run_are_in_the_order_of_numbers() -> None:
    from flows.inventory import _order

    ordered = ["", "curriculum 1", "curriculum 2", "curriculum 10", "cda 1", "random 1", "random 2", "random 10"]
    assert sorted(reversed(ordered), key=_order) == ordered


def test_fetch_by_name(first: House, tmp_path: Path) -> None:
    from cudd_core.codec import read_record
    from cudd_core.errors import ConfigError
    from cudd_core.records import Shard
    from flows import inventory

    store, run = first.store(), first.summary["mlflow_run_id"]
    got = inventory.fetch(run, "curriculum-2/synthesize", tmp_path, store)
    assert [part.name for part in got] == ["curriculum-2/synthesize/slices-5-9-classes-0-9"]
    shard = read_record(tmp_path / got[0].name)
    assert isinstance(shard, Shard) and len(shard.labels) == 50
    with pytest.raises(ConfigError, match=r"has no part 'curriculum-9'") as caught:
        inventory.fetch(run, "curriculum-9", tmp_path, store)
    heads = str(caught.value).rpartition("Parts: ")[2].rstrip(".").split(", ")
    assert {"squeeze", "assemble", "curriculum-1/select", "curriculum-2/synthesize", "random-1/select"} <= set(heads)
    assert heads[0] == "squeeze" and len(heads) == len(set(heads))


def test_gc_keeps_all_that_kept_runs_need(make_home: MakeHome) -> None:
    from flows.beginning import walk_run
    from tasks.garbage import find_garbage, remove_garbage

    home = make_home("gc")
    small = distil(home, BARE)
    other = distil(home, [*BARE, "seed=1"])
    forced = distil(home, BARE, force=["synthesize"])
    store = Store.from_environment(home).connect()
    (store.work_folder / ("0" * 64)).mkdir(parents=True, exist_ok=True)
    assert find_garbage(store, hours=1).abandoned == ()
    garbage = find_garbage(store, hours=0)
    # The two shards that were forced anew withdrew two; nothing else is in nobody's run.
    assert [attempt.stage for attempt in garbage.abandoned] == ["synthesize", "synthesize"]
    assert garbage.unreferenced == ()
    store.client.delete_run(other["mlflow_run_id"])
    for nested in nested_runs(store, other["mlflow_run_id"]).values():
        store.client.delete_run(nested.info.run_id)
    garbage = find_garbage(store, hours=0)
    gone = [artifact_folder(store, attempt.run_id) for attempt in (*garbage.abandoned, *garbage.unreferenced)]
    assert len(garbage.unreferenced) == other["computed_tasks"] and all(folder.is_dir() for folder in gone)
    remove_garbage(store, garbage)
    assert not any(folder.exists() and any(folder.iterdir()) for folder in gone)
    assert find_garbage(store, hours=0).abandoned == find_garbage(store, hours=0).unreferenced == ()
    for summary in (small, forced):
        parts = walk_run(summary["mlflow_run_id"], store).parts
        assert {part.stage for part in parts if part.standing != "stored"} == {"report"}, "`distil` draws none"
        for part in [part for part in parts if part.stage != "report"]:
            store.fetch(part.ref)
    again = distil(home, BARE)
    assert again["computed_tasks"] == 0
