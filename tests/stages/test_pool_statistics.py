"""Statistics of the pool R ∩ W."""

from __future__ import annotations

import pytest
import torch

from cudd_core import prediction
from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.data.normalizer import Normalizer
from cudd_core.errors import DataError
from cudd_core.models.registry import restore_network
from cudd_core.records import LayerStatistics, NetworkRecord, Verdicts
from cudd_core.stages.classify import classify
from cudd_core.stages.pool_statistics import pool_of, pool_statistics

BLOCKS = (range(0, 2), range(2, 4))


@pytest.fixture(scope="module")
def blocks(teacher: NetworkRecord, split: ArraySplit, runtime: Runtime) -> list[Verdicts]:
    return [classify(teacher, split, block, runtime) for block in BLOCKS]


@pytest.fixture(scope="module")
def answers(student: NetworkRecord, split: ArraySplit, runtime: Runtime) -> list[Verdicts]:
    return [classify(student, split, block, runtime) for block in BLOCKS]


def test_the_pool_is_right_and_wrong(blocks: list[Verdicts], answers: list[Verdicts], split: ArraySplit) -> None:
    def right(verdicts: list[Verdicts]) -> set[int]:
        found = [each.indices[each.predicted == split.labels[each.indices]] for each in verdicts]
        return set(torch.cat(found).tolist())

    pool = pool_of(split.labels, blocks, answers)
    assert set(pool.tolist()) == right(blocks) - right(answers) and len(pool) > 10
    assert pool.tolist() == sorted(pool.tolist())
    assert set(pool_of(split.labels, blocks, []).tolist()) == right(blocks)
    # A student that leaves nothing to learn.
    assert set(pool_of(split.labels, blocks, blocks).tolist()) == right(blocks)


@pytest.mark.parametrize("batch_size", [7, 250])
def test_they_are_those_of_the_layers_inputs_over_the_whole_pool(
    batch_size: int, teacher: NetworkRecord, blocks: list[Verdicts], answers: list[Verdicts], split: ArraySplit,
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(prediction, "PREDICTED_TOGETHER", batch_size)
    found = pool_statistics(teacher, blocks, answers, split, runtime)
    pool = pool_of(split.labels, blocks, answers)
    assert found.images == len(pool)
    network = restore_network(teacher)
    x, expected = Normalizer.of(teacher.spec)(split.images(pool)), []
    for layer in network.features:
        if isinstance(layer, torch.nn.BatchNorm2d):
            expected.append((x.mean((0, 2, 3)), x.var((0, 2, 3), False)))
        x = layer(x)
    assert len(found.pairs()) == len(expected) == 2
    for ours, theirs in zip(found.pairs(), expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_progress_counts_images_and_a_record_holds_the_pairs_in_order(
    teacher: NetworkRecord, blocks: list[Verdicts], split: ArraySplit, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "PREDICTED_TOGETHER", 60)
    seen: list[tuple[int, int]] = []
    found = pool_statistics(
        teacher, blocks, [], split, runtime, progress=lambda done, total, _: seen.append((done, total))
    )
    assert seen[-1] == (found.images, found.images) and len(seen) == -(-found.images // 60)
    again = LayerStatistics.of(found.pairs(), found.images)
    assert list(again.layers) == ["0.mean", "0.variance", "1.mean", "1.variance"]
    assert all(again.layers[name] is value for name, value in found.layers.items())


def test_a_teacher_that_is_never_right_is_refused(teacher: NetworkRecord, split: ArraySplit, runtime: Runtime) -> None:
    wrong = Verdicts(torch.arange(len(split)), ((split.labels + 1) % 4).int())
    with pytest.raises(DataError, match="wrong on every training image"):
        pool_statistics(teacher, [wrong], [], split, runtime)
