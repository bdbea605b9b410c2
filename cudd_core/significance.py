"""Means, spreads, and whether two differ: Welch's t-test. Accuracies are fractions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """`mean` of the first sample minus that of the second; `error`, its standard error; `p`, two-sided.

    `error` and `p` are None where a sample has fewer than two values; `p` also where neither varies.
    """

    mean: float
    error: float | None
    p: float | None


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation (n − 1), None for one value."""
    return statistics.stdev(values) if len(values) > 1 else None


def welch(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two samples whose variances may differ (Welch, 1947).

    t = (x̄ − ȳ) / √(s_x²/n_x + s_y²/n_y), with the degrees of freedom of Welch and Satterthwaite.

    Example:
        >>> f"{welch([0.70, 0.71, 0.69], [0.67, 0.66, 0.68]).error:.6f}"
        '0.008165'
    """
    mean = statistics.fmean(first) - statistics.fmean(second)
    if len(first) < 2 or len(second) < 2:
        return Difference(mean, None, None)
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    error = math.sqrt(sum(parts))
    if error == 0:
        return Difference(mean, 0.0, None)
    from scipy.special import stdtr

    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    return Difference(mean, error, 2 * float(stdtr(freedom, -abs(mean) / error)))
