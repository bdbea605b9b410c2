"""Means, spreads, whether two differ (Welch's t-test), and whether two orders agree. Accuracies are fractions."""

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


LEAST_FOR_P = 6
"""Least number of ranked things for which p is given: with fewer, even full agreement has p ≥ 2/5! = 0.017."""


@dataclass(frozen=True)
class RankAgreement:
    """How far two rankings of `n` things agree: Kendall's τ_b from −1 to 1; None if all are equal in one ranking.

    `p`: two-sided and exact, under the hypothesis that the rankings are unrelated; None for fewer than `LEAST_FOR_P`
    things, and if there are ties.
    """

    tau: float | None
    n: int
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


def kendall(first: Sequence[float], second: Sequence[float]) -> RankAgreement:
    """Compare how two equally long sequences of fractions rank the same things (Kendall, 1945).

    τ_b = (C − D) / √((C + D + T_x)(C + D + T_y)) with C pairs in the same order, D in opposite order, and T_x and T_y
    tied in one sequence alone.

    Example:
        >>> kendall([0.1, 0.2, 0.3], [0.5, 0.7, 0.9])
        RankAgreement(tau=1.0, n=3, p=None)
    """
    # Means that are equal in exact arithmetic may differ in their last bits.
    rows = [[round(value, 12) for value in values] for values in (first, second)]
    distinct, n = [len(set(row)) for row in rows], len(first)
    if min(distinct) < 2:
        return RankAgreement(None, n, None)
    from scipy.stats import kendalltau

    tied = distinct != [n, n]
    found = kendalltau(*rows, method="asymptotic" if tied else "exact")
    return RankAgreement(round(float(found.statistic), 12), n, None if tied or n < LEAST_FOR_P else float(found.pvalue))
