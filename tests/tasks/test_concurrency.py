"""Processes that want the same outputs at the same time, and processes that are killed where it hurts most."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

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
