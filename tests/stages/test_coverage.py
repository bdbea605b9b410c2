"""Sets among their originals, in the features of a real teacher."""

from __future__ import annotations

import math

import pytest
import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.errors import DataError
from cudd_core.records import NetworkRecord, SyntheticSet
from cudd_core.stages.coverage import coverage


def originals(split: ArraySplit, names: tuple[str, ...]) -> SyntheticSet:
    """The whole split as a set."""
    n = len(split)
    return SyntheticSet(split.pixels, split.labels, torch.arange(n), torch.arange(n), torch.ones(n).long(), names)


def test_the_originals_as_a_set_cover_themselves(
    teacher: NetworkRecord, split: ArraySplit, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    whole = originals(split, synthetic.class_names)
    found = coverage(teacher, split, {"few": synthetic, "all": whole}, 2, 5, 0, runtime)
    assert {name: tuple(points.shape) for name, points in found.points.items()} == {
        "originals": (40, 2),
        "few": (3, 2),
        "all": (40, 2),
    }
    real, few, everything = found.scores.tolist()
    assert math.isnan(real[0]) and math.isnan(real[1])
    assert everything[:2] == [1.0, 1.0] and everything[2] == pytest.approx(real[2])
    assert 0 < few[1] < 1
    again = coverage(teacher, split, {"few": synthetic, "all": whole}, 2, 5, 0, runtime)
    assert all(torch.equal(found.points[name], again.points[name]) for name in found.points)


def test_more_neighbours_than_originals_are_refused(
    teacher: NetworkRecord, split: ArraySplit, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    with pytest.raises(DataError, match="'cyan' has 40 training images; --neighbours 40 needs at least 41"):
        coverage(teacher, split, {"few": synthetic}, 2, 40, 0, runtime)
