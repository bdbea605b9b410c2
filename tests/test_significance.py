"""Welch's test against scipy's own, and where it has nothing to say."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cudd_core.significance import deviation, welch

accuracies = st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(accuracies, accuracies)
def test_agrees_with_scipy(first: list[float], second: list[float]) -> None:
    from scipy.stats import ttest_ind_from_stats

    found = welch(first, second)
    assert found.mean == pytest.approx(statistics.fmean(first) - statistics.fmean(second))
    means, spreads = map(statistics.fmean, (first, second)), map(statistics.stdev, (first, second))
    m1, m2 = means
    s1, s2 = spreads
    if found.p is None:
        assert s1 == s2 == 0
        return
    t, p = ttest_ind_from_stats(m1, s1, len(first), m2, s2, len(second), equal_var=False)
    assert found.error is not None and found.mean / found.error == pytest.approx(t, abs=1e-9)
    assert found.p == pytest.approx(p, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(accuracies, accuracies)
def test_is_antisymmetric(first: list[float], second: list[float]) -> None:
    one, other = welch(first, second), welch(second, first)
    assert one.mean == pytest.approx(-other.mean) and one.error == other.error
    assert (one.p is None) == (other.p is None) and (one.p is None or one.p == pytest.approx(other.p))


def test_one_value_has_no_spread() -> None:
    assert deviation([0.5]) is None
    found = welch([0.7], [0.6, 0.61])
    assert found.mean == pytest.approx(0.095) and found.error is found.p is None


def test_equal_values_have_no_p_and_no_warning() -> None:
    found = welch([0.5, 0.5], [0.25, 0.25])
    assert (found.mean, found.error, found.p) == (0.25, 0.0, None)


def test_standard_error_by_hand() -> None:
    found = welch([0.70, 0.72], [0.60, 0.60, 0.66])
    assert found.error == pytest.approx(math.sqrt(0.0002 / 2 + 0.0012 / 3))
