"""Welch's test against scipy's own, orders against pairs counted by hand, and where they have nothing to say."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cudd_core.significance import LEAST_FOR_P, deviation, kendall, welch

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
    for found in (welch([0.7], [0.6, 0.61]), welch([0.69, 0.7], [0.6])):
        assert found.mean == pytest.approx(0.095) and found.error is found.p is None


def test_equal_values_have_no_p_and_no_warning() -> None:
    found = welch([0.5, 0.5], [0.25, 0.25])
    assert (found.mean, found.error, found.p) == (0.25, 0.0, None)


def test_standard_error_by_hand() -> None:
    found = welch([0.70, 0.72], [0.60, 0.60, 0.66])
    assert found.error == pytest.approx(math.sqrt(0.0002 / 2 + 0.0012 / 3))


@pytest.mark.parametrize(
    ("first", "second", "tau"),
    [
        ([0.1, 0.2, 0.3], [0.5, 0.7, 0.9], 1.0),
        ([0.1, 0.2, 0.3], [0.9, 0.7, 0.5], -1.0),
        ([0.1, 0.2, 0.3], [0.5, 0.9, 0.7], 1 / 3),  # two pairs in the same order, one in the other
        ([0.1, 0.2, 0.3, 0.4], [0.5, 0.7, 0.6, 0.8], 2 / 3),  # five and one
        ([0.1, 0.2, 0.3, 0.4], [0.6, 0.8, 0.5, 0.7], 0.0),  # three and three
        ([0.1, 0.2, 0.2], [0.5, 0.6, 0.7], 2 / math.sqrt(3 * 2)),  # two different values are an order
        ([0.1, 0.2, 0.2, 0.3], [0.5, 0.6, 0.7, 0.8], 5 / math.sqrt(6 * 5)),  # five, none, and one tied in the first
        ([0.1, 0.2, 0.2, 0.3], [0.5, 0.7, 0.7, 0.6], 1 / 5),  # three and two; the pair tied in both counts for nothing
    ],
)
def test_kendall_s_tau_by_hand(first: list[float], second: list[float], tau: float) -> None:
    assert kendall(first, second).tau == kendall(second, first).tau == pytest.approx(tau, abs=1e-12)
    assert kendall(first, second).n == len(first)


def test_an_order_s_p_counts_orders_and_is_not_given_of_few() -> None:
    for n in range(3, 8):
        found = kendall([i / 10 for i in range(n)], [i / 9 for i in range(n)])
        assert found.tau == 1.0
        # Of all n! orders, this one and its reverse agree as much.
        assert found.p == (None if n < LEAST_FOR_P else pytest.approx(2 / math.factorial(n)))
    second = [0.1, 0.0, 0.3, 0.2, 0.5, 0.4]
    found = kendall([i / 10 for i in range(6)], second)

    def apart(order: tuple[int, ...]) -> int:
        return abs(sum(1 if a < b else -1 for a, b in itertools.combinations(order, 2)))

    orders = [apart(order) for order in itertools.permutations(range(6))]
    assert found.tau == pytest.approx(9 / 15)
    assert found.p == pytest.approx(sum(each >= 9 for each in orders) / len(orders))


def test_orders_of_equal_things_say_nothing() -> None:
    same = [0.1 + 0.2, 0.3, 0.15 + 0.15]
    assert kendall(same, [0.1, 0.2, 0.3]).tau is None, "their last bits are no order"
    tied = kendall([0.1, 0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert tied.tau is not None and tied.p is None
