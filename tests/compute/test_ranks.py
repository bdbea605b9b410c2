"""Whose images are whose."""

from __future__ import annotations

import pytest
import torch

from cudd_core.compute.ranks import Part, Ranks, part_of
from cudd_core.models.stochastic import SeededDrop

SIZES = [(n, size) for n in (1, 2, 3, 7, 16, 100, 129) for size in (1, 2, 3, 7, 8, 64)]


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_parts_are_the_batch_and_their_weights_are_one(n: int, size: int) -> None:
    parts = [part_of(n, rank, size) for rank in range(size)]
    assert sum(part.weight for part in parts) == pytest.approx(1)
    rows = [row for part in parts for row in range(part.start, part.stop)]
    if n >= size:
        assert rows == list(range(n))
        lengths = {part.stop - part.start for part in parts}
        assert max(lengths) - min(lengths) <= 1 and min(lengths) > 0
    else:
        assert rows == size * list(range(n))


@pytest.mark.parametrize(("n", "size"), SIZES)
def test_weighted_means_of_parts_add_up_to_the_mean(n: int, size: int) -> None:
    values = torch.arange(n, dtype=torch.float64) ** 2
    parts = [part_of(n, rank, size) for rank in range(size)]
    assert float(sum(part.of(values).mean() * part.weight for part in parts)) == pytest.approx(float(values.mean()))


def test_a_part_of_targets_is_that_of_each_tensor() -> None:
    logits, share = torch.arange(6).view(3, 2), torch.tensor(0.25)
    part = part_of(3, 1, 2)
    assert part.of(logits).tolist() == [[2, 3], [4, 5]] and part.of(share) is share
    assert Ranks().take(3).of(logits) is logits


@pytest.mark.parametrize("kind", ["element", "channel", "row", "batch"])
@pytest.mark.parametrize(("n", "size", "each"), [(5, 2, 1), (5, 2, 3), (2, 3, 1)])
def test_parts_are_dropped_as_the_whole_batch_is(kind: str, n: int, size: int, each: int) -> None:
    """Also where a layer sees several rows of each image, as windows of it."""
    x = torch.ones(n * each, 4, 3)
    whole = SeededDrop(0.5, kind, True, 0, "layer")  # type: ignore[arg-type]
    expected = [whole(x), whole(x)]
    for rank in range(size):
        layer = SeededDrop(0.5, kind, True, 0, "layer")  # type: ignore[arg-type]
        layer.ranks = Ranks(rank, size)
        for y in expected:
            part = layer.ranks.take(n)
            rows = Part(part.start * each, part.stop * each, part.whole * each, 1.0)
            assert torch.equal(layer(rows.of(x)), rows.of(y))
