"""How a set of points is distributed among others: density and coverage by nearest neighbours, homogeneity by angles.

Naeem, Oh, Uh, Choi and Yoo, "Reliable fidelity and diversity metrics for generative models", ICML 2020, Eqs. 5 and 6.
Exact: every distance is computed, in float64, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

_ROWS = 512


def neighbour_radii(points: Tensor, k: int) -> Tensor:
    """Return the distance from each of `points` [n, d] to its k-th nearest other point, float64 [n]. Needs n > k."""
    assert len(points) > k >= 1
    # k + 1, because the nearest of all is the point itself.
    return torch.cat([block.kthvalue(k + 1, dim=1).values for block in _distances(points, points)])


def density_and_coverage(real: Tensor, fake: Tensor, radii: Tensor, k: int) -> tuple[float, float]:
    """Return density and coverage of `fake` [m, d] among `real` [n, d], whose `neighbour_radii` for k are `radii`.

    With B_i the open ball around real point i that reaches to its k-th nearest real neighbour:
    density = Σ_j #{i : fake_j ∈ B_i} / (k · m), in [0, n / k], about 1 for points drawn like the real ones;
    coverage = #{i : B_i holds a fake point} / n, in [0, 1]. m limits how much can be covered, so compare only sets of
    the same size.
    """
    inside, covered, start = 0, 0, 0
    for block in _distances(real, fake):
        within = block < radii[start : start + len(block), None]
        inside += int(within.sum())
        covered += int(within.any(dim=1).sum())
        start += len(block)
    return inside / (k * len(fake)), covered / len(real)


def homogeneity(points: Tensor) -> float:
    """Return the mean cosine over pairs of different `points` [n, d]: 1 if all lie in one direction.

    NaN for fewer than two points.
    """
    n = len(points)
    if n < 2:
        return float("nan")
    directions = normalize(points.double(), dim=1)
    # ‖Σ u‖² is the sum of cosines over all ordered pairs, including the n pairs of a point with itself.
    total = float(directions.sum(dim=0).square().sum() - directions.square().sum())
    return total / (n * (n - 1))


def _distances(rows: Tensor, columns: Tensor) -> Iterator[Tensor]:
    """Yield Euclidean distances, float64 [at most 512, m]."""
    columns = columns.double()
    for block in torch.split(rows.double(), _ROWS):
        # Not by the matrix product ‖a‖² + ‖b‖² - 2ab, whose rounding leaves a point at some distance from itself.
        yield torch.cdist(block, columns, compute_mode="donot_use_mm_for_euclid_dist")
