"""Quantities in words."""

from __future__ import annotations

import pytest

from flows.quantities import in_bytes, in_flops, in_time


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_436_000_000, "1.44 GB")),
        *((999_499, "999 kB"), (999_500, "1 MB"), (999_999_999, "1 GB"), (5e18, "5e+03 PB")),
    ],
)
def test_bytes_have_three_digits_and_the_unit_that_leaves_less_than_a_thousand(value: float, words: str) -> None:
    assert in_bytes(value) == words


def test_arithmetic() -> None:
    assert in_flops(1.4e15) == "1.4 PFLOP" and in_flops(0.5) == "0.5 FLOP"


@pytest.mark.parametrize(
    ("hours", "words"),
    [(0, "1 s"), (89 / 3600, "89 s"), (0.5, "30 min"), (1.5, "1.5 h"), (71.9, "71.9 h"), (96, "4 days")],
)
def test_time(hours: float, words: str) -> None:
    assert in_time(hours) == words
