"""S_j by trajectory matching: all classes and slices of a curriculum in one shard."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.objectives.configuration import MttConfig, SynthesisConfig
from cudd_core.records import Selection, Shard, Trajectory, Verdicts
from cudd_core.stages.match_trajectories import match_trajectories
from cudd_core.stages.select import SelectConfig, select
from cudd_core.stages.train_expert import train_expert

MTT = MttConfig(
    arch="convnet2-w4-in", expert_epochs=2, expert_batch_size=40, expert_learning_rate=0.1, start_epochs=1, span=2,
    steps=2, batch_size=8, pixel_learning_rate=20.0,
)  # fmt: skip
CONFIG = SynthesisConfig(objective="mtt", iterations=4, log_every=2, mtt=MTT)


@pytest.fixture(scope="module")
def experts(split: ArraySplit, runtime: Runtime) -> list[Trajectory]:
    return [train_expert(split, MTT, number, 0, runtime).until(MTT.last_epoch) for number in range(2)]


@pytest.fixture(scope="module")
def make(experts: list[Trajectory], split: ArraySplit, selection: Selection, runtime: Runtime) -> Any:
    def make(selections: list[Selection] | None = None, earlier: tuple[Shard, ...] = (), seed: int = 0) -> Shard:
        return match_trajectories(experts, selections or [selection], earlier, split, 2, CONFIG, seed, runtime)

    return make


def test_the_images_of_a_curriculum_are_one_shard_slice_major(
    make: Any, split: ArraySplit, selection: Selection
) -> None:
    shard = make([replace(selection, first_slice=5)])
    assert shard.labels.tolist() == [0, 1, 2, 3] * 3
    assert shard.slices.tolist() == [5] * 4 + [6] * 4 + [7] * 4
    assert torch.equal(shard.sources, selection.indices.flatten()) and shard.curriculum == 2
    originals = split.images(shard.sources)
    assert shard.images.dtype == torch.uint8 and shard.images.shape == originals.shape
    changed = (shard.images != originals).flatten(1).any(1)
    assert bool(changed.all())
    assert [row["iteration"] for row in shard.history] == [0, 2, 3]
    assert all(row.keys() == {"slice", "class", "iteration", "trajectory", "step_size"} for row in shard.history)


def test_blocks_do_not_matter(make: Any, split: ArraySplit, verdicts: Verdicts) -> None:
    used = torch.empty(0, dtype=torch.int64)
    blocks = [
        select(split.labels, classes, range(3), verdicts, None, used, SelectConfig(), 0)
        for classes in (range(0, 2), range(2, 4))
    ]
    assert torch.equal(make(blocks).images, make().images)


def test_the_seed_and_the_set_so_far_count(make: Any, selection: Selection) -> None:
    first = make()
    assert torch.equal(make().images, first.images)
    assert not torch.equal(make(seed=1).images, first.images)
    later = [replace(selection, first_slice=3)]
    # Another curriculum's slices, trained beside those of the first: with and without them.
    alone, beside = make(later), make(later, (first,))
    assert torch.equal(alone.sources, beside.sources)
    assert not torch.equal(alone.images, beside.images)
