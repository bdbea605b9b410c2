"""Features are what the head is given, image by image."""

from __future__ import annotations

import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.data.normalizer import Normalizer
from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord
from cudd_core.stages.features import features


def test_the_head_makes_the_network_s_answers_of_them(
    teacher: NetworkRecord, split: ArraySplit, runtime: Runtime
) -> None:
    found = features(teacher, split, range(4), runtime)
    assert torch.equal(found.indices, torch.arange(len(split))) and found.features.dtype == torch.float32
    network = restore_network(teacher)
    with torch.no_grad():
        logits = network(Normalizer.of(teacher.spec)(split.pixels))
        torch.testing.assert_close(network.head(found.features), logits)


def test_a_block_gets_its_own_samples(teacher: NetworkRecord, split: ArraySplit, runtime: Runtime) -> None:
    whole = features(teacher, split, range(4), runtime)
    block = features(teacher, split, range(1, 3), runtime)
    assert torch.equal(block.indices, ((split.labels >= 1) & (split.labels < 3)).nonzero().flatten())
    torch.testing.assert_close(block.features, whole.features[block.indices])
    assert len(features(teacher, split, range(4, 6), runtime).indices) == 0
