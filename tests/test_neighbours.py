"""Density, coverage and homogeneity: against brute force, and where the answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cudd_core.neighbours import density_and_coverage, homogeneity, neighbour_radii
from cudd_core.seeding import torch_rng


def cloud(n: int, *path: str, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch_rng(0, *path))


def by_hand(real: list[list[float]], fake: list[list[float]], k: int) -> tuple[float, float]:
    """Naeem et al., Eqs. 5 and 6, one distance at a time."""
    balls = [sorted(math.dist(x, y) for j, y in enumerate(real) if j != i)[k - 1] for i, x in enumerate(real)]
    inside = sum(math.dist(x, y) < ball for y in fake for x, ball in zip(real, balls, strict=True))
    covered = sum(any(math.dist(x, y) < ball for y in fake) for x, ball in zip(real, balls, strict=True))
    return inside / (k * len(fake)), covered / len(real)


@pytest.mark.parametrize(("n", "m", "k"), [(40, 25, 5), (40, 3, 1), (8, 60, 7), (600, 20, 3)])
def test_brute_force_says_the_same(n: int, m: int, k: int) -> None:
    real, fake = cloud(n, "real").double(), 0.5 * cloud(m, "fake").double() + 0.3
    assert scores(real, fake, k) == pytest.approx(by_hand(real.tolist(), fake.tolist(), k), abs=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_the_real_points_themselves_are_dense_and_cover_all(k: int) -> None:
    """Of every ball, the point in its middle and the k - 1 nearest others are inside; the k-th is on its edge."""
    real = cloud(700, "real")
    assert scores(real, real, k) == (1.0, 1.0)


def scores(real: Tensor, fake: Tensor, k: int) -> tuple[float, float]:
    return density_and_coverage(real, fake, neighbour_radii(real, k), k)


def test_points_far_away_cover_nothing() -> None:
    assert scores(cloud(30, "real"), cloud(10, "fake") + 1000, 5) == (0.0, 0.0)


def test_copies_of_one_point_cover_little() -> None:
    real = cloud(100, "real")
    middle = real[(real - real.mean(0)).norm(dim=1).argmin()].repeat(50, 1)
    density, coverage = scores(real, middle, 5)
    assert coverage < 0.2
    # Whichever balls hold one copy hold all.
    assert density == pytest.approx(coverage * 100 / 5)
    # A copy more or less changes neither.
    assert scores(real, middle[:1], 5) == (density, coverage)


def test_neither_shift_nor_scale_counts() -> None:
    real, fake = cloud(50, "real").double(), cloud(30, "fake").double()
    assert scores(8 * real + 3, 8 * fake + 3, 4) == scores(real, fake, 4)


def test_radii_on_a_line() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_radii(points, 1).tolist() == [1, 1, 2, 4]
    assert neighbour_radii(points, 3).tolist() == [7, 6, 4, 7]


def test_homogeneity_is_the_mean_cosine_of_pairs() -> None:
    points = cloud(20, "real", d=5).double()
    cosine = torch.nn.functional.cosine_similarity(points[:, None], points[None], dim=2)
    pairs = cosine[~torch.eye(20, dtype=torch.bool)]
    assert homogeneity(points) == pytest.approx(float(pairs.mean()), abs=1e-12)


def test_homogeneity_where_it_is_known() -> None:
    direction = torch.tensor([[1.0, 2.0, -1.0]])
    assert homogeneity(direction * torch.tensor([[1.0], [5.0], [0.1]])) == pytest.approx(1)
    assert homogeneity(torch.eye(4)) == pytest.approx(0, abs=1e-12)
    assert homogeneity(torch.stack([direction[0], -direction[0]])) == pytest.approx(-1)
    assert math.isnan(homogeneity(direction))
