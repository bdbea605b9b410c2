"""Experts: plain SGD on T with a snapshot of every epoch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from cudd_core.codec import content_digest
from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.errors import Cancelled
from cudd_core.models.registry import build, build_network
from cudd_core.models.stateless import leaves, sgd_step, stateless
from cudd_core.objectives.configuration import MttConfig
from cudd_core.records import Trajectory
from cudd_core.stages.train_expert import train_expert

CONFIG = MttConfig(
    arch="convnet2-w4-in", expert_epochs=3, expert_batch_size=40, expert_learning_rate=0.1, start_epochs=2, span=1
)


def same(a: Trajectory, b: Trajectory) -> bool:
    return content_digest(a) == content_digest(b) and a.history == b.history


@pytest.fixture(scope="module")
def expert(split: ArraySplit, runtime: Runtime) -> Trajectory:
    return train_expert(split, CONFIG, 0, 0, runtime)


def test_a_snapshot_of_every_epoch_the_first_before_training(expert: Trajectory) -> None:
    network = build_network("convnet2-w4-in", 4, 3, 8, 0)
    assert {n: rows.shape for n, rows in expert.snapshots.items()} == {
        n: (4, *value.shape) for n, value in network.named_parameters()
    }
    assert float(expert.at(0)["features.1.weight"].min()) == 1  # as every norm begins
    ways = [expert.at(epoch)["head.weight"] for epoch in range(4)]
    assert all(not torch.equal(a, b) for a, b in pairwise(ways))
    assert [row["epoch"] for row in expert.history] == [1, 2, 3]
    # A mean over steps: of four classes, chance is ln 4.
    assert expert.history[-1]["loss"] < expert.history[0]["loss"] < 2


def test_a_longer_training_begins_with_the_shorter_one(expert: Trajectory, split: ArraySplit, runtime: Runtime) -> None:
    longer = train_expert(split, CONFIG.model_copy(update={"expert_epochs": 4}), 0, 0, runtime)
    assert same(longer.until(3), expert)


def test_each_number_and_each_seed_has_a_way_of_its_own(
    expert: Trajectory, split: ArraySplit, runtime: Runtime
) -> None:
    others = [train_expert(split, CONFIG, *which, runtime) for which in ((0, 0), (1, 0), (0, 1))]
    assert same(others[0], expert)
    assert not torch.equal(others[1].at(0)["head.weight"], expert.at(0)["head.weight"])
    assert not torch.equal(others[2].at(0)["head.weight"], expert.at(0)["head.weight"])


def test_experts_that_begin_alike_see_images_in_orders_of_their_own(
    split: ArraySplit, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cudd_core.stages.train_expert.build", lambda spec, seed: build(spec, 0))
    one, other = (train_expert(split, CONFIG, number, 0, runtime) for number in (0, 1))
    assert torch.equal(one.at(0)["head.weight"], other.at(0)["head.weight"])
    assert not torch.equal(one.at(1)["head.weight"], other.at(1)["head.weight"])


@pytest.mark.parametrize("stop_at", [1, 2])
def test_a_killed_training_goes_on_with_the_same_bytes(
    stop_at: int, expert: Trajectory, split: ArraySplit, runtime: Runtime, tmp_path: Path
) -> None:
    def stop(done: float, total: int, metrics: Mapping[str, float]) -> None:
        if done == stop_at:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        train_expert(split, CONFIG, 0, 0, runtime, checkpoints=tmp_path, progress=stop)
    steps: list[float] = []
    resumed = train_expert(
        split, CONFIG, 0, 0, runtime, checkpoints=tmp_path, progress=lambda done, *_: steps.append(done)
    )
    assert [done for done in steps if done == int(done)] == list(range(stop_at, 4))
    assert min(steps) == stop_at, "where it continues"
    assert same(resumed, expert)
    reports: list[float] = []
    read = train_expert(
        split, CONFIG, 0, 0, runtime, checkpoints=tmp_path, progress=lambda done, *_: reports.append(done)
    )
    assert same(read, expert) and not reports, "nothing is left to continue"


def test_an_epoch_is_plain_sgd_without_schedule(split: ArraySplit, runtime: Runtime) -> None:
    """The whole set in one step, unaugmented: every epoch is the same function of the parameters."""
    config = CONFIG.model_copy(update={"expert_batch_size": 160, "crop": "none", "flip": False})
    way = train_expert(split, config, 0, 0, runtime)
    spec = way.spec
    network = stateless(build_network(spec.arch, 4, 3, 8, 0), spec.arch)
    pixels = split.images(torch.arange(160)).float() / 255
    images = (pixels - torch.tensor(spec.mean)[:, None, None]) / torch.tensor(spec.std)[:, None, None]
    for epoch in range(3):
        stepped, _ = sgd_step(network, leaves(way.at(epoch)), images, split.labels, 0.1)
        for name, value in way.at(epoch + 1).items():
            torch.testing.assert_close(value, stepped[name], rtol=1e-4, atol=1e-6)
