"""Selection by geometry: k images that represent n, given their features. Deterministic; nothing is drawn.

Both methods are greedy, so the first k of a larger selection are the selection of k, and a selection can be continued.
"""

from __future__ import annotations

import torch
from torch import Tensor


def herding(features: Tensor, count: int, chosen: Tensor | None = None) -> Tensor:
    """Return positions int64 [count] whose running mean follows the mean of all features (Welling, 2009).

    The k-th pick minimises ‖μ − (x + Σ_{i<k} x_i) / k‖ over all x not yet chosen, as in iCaRL (Rebuffi et al., 2017,
    Algorithm 4) but with features as they are, not scaled to length 1. Ties go to the first candidate.

    Args:
        features: float [n, d].
        count: how many to pick, at most n − c.
        chosen: int64 [c], positions that count as the first picks.

    Example:
        >>> herding(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 2).tolist()
        [2, 1]
    """
    points, taken, free = _start(features, chosen)
    mean, total = points.mean(0), points[taken].sum(0)
    squares = points.square().sum(1)
    picks = []
    for k in range(len(taken) + 1, len(taken) + count + 1):
        # ‖kμ − Σ − x‖² without its constant.
        distance = squares - 2 * points @ (k * mean - total)
        picks.append(int(distance.masked_fill(~free, torch.inf).argmin()))
        free[picks[-1]] = False
        total = total + points[picks[-1]]
    return torch.tensor(picks, dtype=torch.int64)


def k_center(features: Tensor, count: int, chosen: Tensor | None = None) -> Tensor:
    """Return positions int64 [count] such that every feature is near one of them (Gonzalez, 1985).

    Starts with the point nearest to the mean, then always takes the one farthest from all chosen. The largest distance
    of a point to its nearest pick is at most twice the smallest that `count` picks can reach. In data set selection:
    Sener and Savarese, 2018, Algorithm 1.

    Args, ties: as `herding`.

    Example:
        >>> k_center(torch.tensor([[0.0], [1.0], [2.0], [9.0]]), 2).tolist()
        [2, 3]
    """
    points, taken, free = _start(features, chosen)
    nearest = torch.full((len(points),), torch.inf, dtype=points.dtype)
    for position in taken.tolist():
        nearest = torch.minimum(nearest, _distances(points, points[position]))
    picks: list[int] = []
    for _ in range(count):
        if len(taken) or picks:
            picks.append(int(nearest.masked_fill(~free, -torch.inf).argmax()))
        else:
            picks.append(int(_distances(points, points.mean(0)).argmin()))
        free[picks[-1]] = False
        nearest = torch.minimum(nearest, _distances(points, points[picks[-1]]))
    return torch.tensor(picks, dtype=torch.int64)


def _start(features: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the points in float64 (so that ties come from the data, not from rounding), taken positions, free mask."""
    taken = torch.empty(0, dtype=torch.int64) if chosen is None else chosen
    free = torch.ones(len(features), dtype=torch.bool)
    free[taken] = False
    return features.double(), taken, free


def _distances(points: Tensor, centre: Tensor) -> Tensor:
    return (points - centre).square().sum(1)
