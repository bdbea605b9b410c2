from __future__ import annotations

import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.data.normalizer import Normalizer
from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord
from cudd_core.stages.classify import classify


def test_answers_are_the_network_s_for_each_image_alone(
    student: NetworkRecord, split: ArraySplit, runtime: Runtime
) -> None:
    verdicts = classify(student, split, range(4), runtime)
    assert torch.equal(verdicts.indices, torch.arange(len(split)))
    normalizer = Normalizer.of(student.spec)
    network = restore_network(student)
    alone = torch.cat([network(normalizer(split.pixels[i : i + 1])).argmax(1) for i in range(len(split))])
    assert torch.equal(verdicts.predicted.long(), alone)
    accuracy = float((alone == split.labels).double().mean())
    assert 0.05 < accuracy < 0.95  # both right and wrong answers were compared


def test_a_block_gets_its_own_samples_in_ascending_order(
    student: NetworkRecord, split: ArraySplit, runtime: Runtime
) -> None:
    whole = classify(student, split, range(4), runtime)
    for classes in (range(0, 1), range(1, 3), range(3, 4), range(0, 4)):
        block = classify(student, split, classes, runtime)
        inside = torch.tensor([int(label) in classes for label in split.labels])
        assert torch.equal(block.indices, inside.nonzero().flatten())
        assert torch.equal(block.predicted, whole.predicted[block.indices])
        assert block.predicted.dtype == torch.int32


def test_a_block_without_samples_has_no_answers(student: NetworkRecord, split: ArraySplit, runtime: Runtime) -> None:
    block = classify(student, split, range(4, 6), runtime)
    assert len(block.indices) == len(block.predicted) == 0


def test_progress_ends_with_every_sample(student: NetworkRecord, split: ArraySplit, runtime: Runtime) -> None:
    seen: list[tuple[int, int]] = []
    classify(student, split, range(2), runtime, progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (80, 80)
