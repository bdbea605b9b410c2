"""Herding is greedy mean matching, k-center a 2-approximation; both against every alternative on small sets."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cudd_core.coresets import herding, k_center

every_case = settings(max_examples=80, deadline=None)
both = pytest.mark.parametrize("select", [herding, k_center])
Select = Callable[..., Tensor]


@st.composite
def clouds(draw: st.DrawFn, largest: int = 9) -> Tensor:
    """Points with small whole coordinates, so that ties and duplicates occur."""
    n, d = draw(st.integers(2, largest)), draw(st.integers(1, 3))
    values = draw(st.lists(st.integers(-4, 4), min_size=n * d, max_size=n * d))
    return torch.tensor(values, dtype=torch.float32).reshape(n, d)


@every_case
@given(clouds(), st.data())
def test_herding_takes_the_best_of_all_candidates_at_every_step(points: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(points)))
    mean = points.double().mean(0)
    taken: list[int] = []
    for pick in herding(points, count).tolist():
        gaps = {
            i: float((points[[*taken, i]].double().mean(0) - mean).norm()) for i in range(len(points)) if i not in taken
        }
        assert pick in gaps and gaps[pick] == pytest.approx(min(gaps.values()), abs=1e-9)
        taken.append(pick)


@every_case
@given(clouds(), st.data())
def test_k_center_covers_within_twice_the_best_radius(points: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(points)))
    distances = torch.cdist(points.double(), points.double())

    def radius(centres: list[int]) -> float:
        return float(distances[:, centres].min(1).values.max())

    best = min(radius(list(each)) for each in itertools.combinations(range(len(points)), count))
    assert radius(k_center(points, count).tolist()) <= 2 * best + 1e-6


@both
@every_case
@given(points=clouds(), data=st.data())
def test_picks_are_distinct_and_a_selection_can_be_continued(
    select: Select, points: Tensor, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, len(points)))
    first = data.draw(st.integers(0, count))
    whole = select(points, count)
    assert len(set(whole.tolist())) == count == len(whole)
    begun = select(points, first)
    rest = select(points, count - first, begun)
    assert torch.equal(torch.cat([begun, rest]), whole)


@both
def test_nothing_depends_on_where_the_origin_is(select: Select) -> None:
    points = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double()
    assert torch.equal(select(points, 12), select(points + 7, 12))
    assert torch.equal(select(points, 12), select(3 * points, 12))


def test_herding_s_mean_comes_near_faster_than_a_random_one() -> None:
    """The point of it (Welling, 2009): the gap falls like 1/k, of random draws like 1/√k."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(400, 4, generator=generator).double()
    gap = (points[herding(points, 40)].mean(0) - points.mean(0)).norm()
    random = [
        (points[torch.randperm(400, generator=generator)[:40]].mean(0) - points.mean(0)).norm() for _ in range(20)
    ]
    assert gap < 0.2 * torch.stack(random).mean()


@both
def test_features_far_from_zero_are_told_apart(select: Select) -> None:
    """In float32 their squares, near 2^40, would hide all differences."""
    points = torch.tensor([[0.0], [1.0], [2.0], [9.0], [5.0], [3.0]])
    assert select(points + 2.0**20, 4).tolist() == select(points, 4).tolist()
