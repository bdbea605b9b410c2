"""The whole flow with trajectory matching as the objective of its curricula."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cudd_core.records import Shard, Trajectory
from flows.beginning import walk_run
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server", "no_store_variables")

TINY = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet1-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: explicit, ipc: 3, boundaries: [1, 3], block_size: 6}
synthesis:
  objective: mtt
  iterations: 3
  mtt: {arch: convnet1-w4-in, experts: 2, expert_epochs: 1, start_epochs: 1, span: 1, steps: 2, flip: false}
relabel: {flip: false}
student: {training: {epochs: 2, batch_size: 16}}
evaluation: {seeds: 1, training: {epochs: 2, batch_size: 16}}
baselines: [random]
"""


def test_curricula_made_by_trajectory_matching_and_found_again(
    make_home: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.distill import distill
    from flows.summary import summarize

    home = make_home("mtt")
    (home / "tiny.yaml").write_text(TINY)
    monkeypatch.setenv("CUDD_HOME", str(home))
    monkeypatch.setenv("CUDD_SLOTS", "1")
    monkeypatch.setattr("flows.distill.finish", summarize)
    summary: dict[str, Any] = distill(recipe=str(home / "tiny.yaml"))
    assert [each["ipc"] for each in summary["curricula"]] == [1, 3]
    assert summary["dataset"]["images"] == 30 and "train_expert" in summary["seconds"]
    assert set(summary["accuracy"]) == {"teacher", "distilled", "random"}

    store = Store.from_environment(home).connect()
    parts = walk_run(summary["mlflow_run_id"], store).parts
    made = {part.name: store.fetch(part.ref) for part in parts if part.stage in ("train_expert", "synthesize")}
    assert list(made) == [
        *("train_expert/0", "train_expert/1"),
        *("curriculum-1/synthesize/slices-0-0-all-classes", "curriculum-2/synthesize/slices-1-2-all-classes"),
    ]
    experts, shards = list(made.values())[:2], list(made.values())[2:]
    assert all(isinstance(expert, Trajectory) and len(expert.history) == 1 for expert in experts)
    for shard, slices in zip(shards, ([0], [1, 2]), strict=True):
        assert isinstance(shard, Shard)
        assert shard.labels.tolist() == list(range(10)) * len(slices)
        assert shard.slices.unique().tolist() == slices
        assert {"trajectory", "step_size"} <= shard.history[0].keys()

    again = distill(recipe=str(home / "tiny.yaml"))
    assert again["computed_tasks"] == 0 and again["dataset"]["digest"] == summary["dataset"]["digest"]
