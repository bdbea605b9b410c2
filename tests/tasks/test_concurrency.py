"""Processes that want the same outputs at the same time, and processes that are killed where it hurts most."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.servers import Missing, postgres_server, prefect_server
from cudd_core.records import Verdicts
from tasks import store as store_module
from tasks.store import Store

ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 4
RECORD = Verdicts(torch.arange(4), torch.tensor([1, 0, 1, 1], dtype=torch.int32))

# A writer on another machine that dies by SIGKILL: just before or just after its run becomes FINISHED.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from cudd_core.records import Verdicts
from tasks.mlflow_runs import MlflowRuns
from tasks.store import Store

uri, cache, artifacts, when, key = sys.argv[1:]
end = MlflowRuns.end

def killed(self, run_id, status):
    if when == "after":
        end(self, run_id, status)
    os.kill(os.getpid(), signal.SIGKILL)

MlflowRuns.end = killed
# As if held up for longer than anybody waits, between its look at the others and this.
Store._decided = lambda self, *_: None
record = Verdicts(torch.arange(4), torch.tensor([1, 0, 1, 1], dtype=torch.int32))
Store(uri, Path(cache), artifacts, "stages").commit(key, "x", record)
"""

TINY = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet2-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: logarithmic, ipc: 10, step: 5, block_size: 5, slices_per_shard: 5}
synthesis: {iterations: 5, batch_size: 10, jitter: 1}
relabel: {epochs_per_shard: 100}
student: {training: {epochs: 4, batch_size: 16}}
evaluation: {training: {epochs: 4, batch_size: 16}, seeds: 1}
baselines: [random]
compute: {device: cpu, threads: 1, amp: "off"}
"""


def statuses(store: Store) -> dict[str, str]:
    return {run.info.run_id: run.info.status for run in store.runs(KEY)}


def killed_writer(store: Store, folder: Path, when: str) -> None:
    arguments = [store.tracking_uri, str(folder / "cache"), str(store.artifact_root), when, KEY]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
def test_processes_agree(database: str, request: pytest.FixtureRequest) -> None:
    """Eight processes, of one machine and of eight, make a database together and ask for the same keys at once."""
    if database == "postgres":
        request.getfixturevalue("postgres")
    command = [sys.executable, "benchmarks/contention.py", "--database", database, "--machines", "1", "8"]
    done = subprocess.run([*command, "--keys", "2", "--settle", "3"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_runs_of_two_homes_share_postgresql(tmp_path: Path) -> None:
    """Prefect's database and MLflow's, on one PostgreSQL; two people start the same recipe at the same moment."""
    try:
        with postgres_server(("prefect", "mlflow")) as uri:
            database = uri("prefect").replace("+psycopg", "+asyncpg")
            with prefect_server(database, tmp_path / "prefect", tmp_path / "prefect.log") as api:
                check_two_runs(tmp_path, api, uri("mlflow"))
    except Missing as error:
        pytest.skip(str(error))


def check_two_runs(folder: Path, api: str, mlflow: str) -> None:
    recipe, artifacts = folder / "tiny.yaml", folder / "artifacts"
    recipe.write_text(TINY)
    shared = {"PREFECT_API_URL": api, "MLFLOW_TRACKING_URI": mlflow, "CUDD_ARTIFACT_ROOT": str(artifacts)}
    homes = [folder / name for name in ("one", "two")]
    processes = []
    for home in homes:
        home.mkdir()
        own = {"CUDD_HOME": str(home), "PREFECT_HOME": str(home / "prefect")}
        command = [sys.executable, "-m", "flows.cli", "distill", str(recipe), "--summary", str(home / "summary.json")]
        with (home / "log").open("wb") as log:
            environment = os.environ | shared | own
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    codes = [process.wait() for process in processes]
    assert codes == [0, 0], "".join((home / "log").read_text() for home in homes)

    summaries = [json.loads((home / "summary.json").read_text()) for home in homes]
    assert len({summary["dataset"]["digest"] for summary in summaries}) == 1
    assert not any((home / name).exists() for home in homes for name in ("mlflow.db", "prefect/server.json"))
    store = Store(mlflow, folder / "cache", str(artifacts)).connect()
    attempts = store.ledger().attempts
    finished = Counter(attempt.key for attempt in attempts if attempt.ref is not None)
    assert set(finished.values()) == {1} and not any(attempt.status == "RUNNING" for attempt in attempts)
    assert {run.info.run_id for run in store.pipelines.outermost()} == {each["mlflow_run_id"] for each in summaries}
    assert {run.info.status for run in store.pipelines.search()} == {"FINISHED"}
    request = urllib.request.Request(f"{api}/flow_runs/filter", b"{}", {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        flow_runs = {run["id"]: run["state_name"] for run in json.load(answer)}
    assert flow_runs == {summary["run_id"]: "Completed" for summary in summaries}


def test_killed_after_a_second_finish(make_store: Callable[..., Store], tmp_path: Path) -> None:
    store = make_store()
    ref = store.commit(KEY, "x", RECORD)
    killed_writer(store, tmp_path / "other", "after")
    assert sorted(statuses(store).values()) == ["FINISHED", "FINISHED"]

    found = make_store("third").lookup(KEY)
    assert found is not None and found.run_id == ref.run_id
    assert statuses(store)[ref.run_id] == "FINISHED" and sorted(statuses(store).values()) == ["FINISHED", "KILLED"]
    assert make_store("third").lookup(KEY) == found


def test_killed_before_its_finish(
    make_store: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It announced itself, so others wait for it, but not for long."""
    monkeypatch.setattr(store_module, "SETTLE_SECONDS", 0.5)
    store = make_store()
    killed_writer(store.connect(), tmp_path / "other", "before")
    assert list(statuses(store).values()) == ["RUNNING"] and store.lookup(KEY) is None
    ref = store.commit(KEY, "x", RECORD)
    assert not ref.reused and sorted(statuses(store).values()) == ["FINISHED", "RUNNING"]
