"""DD-Ranking's formula: its range, what it grows with, and the figure that DD-Ranking's own scoring prints."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cudd_core.exchange import score_ddranking
from cudd_core.robust_scores import augmentation_robust_score, label_robust_score

share = st.floats(0, 1)


@given(share, share, share, share)
def test_scores_lie_between_0_and_1(a: float, b: float, c: float, d: float) -> None:
    for score in (label_robust_score, augmentation_robust_score):
        assert -1e-12 <= score(a, b, c, d) <= 1 + 1e-12


def test_ends_of_the_range() -> None:
    assert label_robust_score(0, 0, 1, 1) == pytest.approx(0)
    assert label_robust_score(1, 1, 0, 0) == pytest.approx(1)
    assert augmentation_robust_score(1, 1, 0, 0) == pytest.approx(1)


def test_by_hand_on_fractions() -> None:
    # IOR = 0.036, HLR = 0.42: alpha = 0.018 - 0.21.
    expected = (math.exp(-0.192) - math.exp(-1)) / (math.e - math.exp(-1))
    assert label_robust_score(soft=0.708, hard=0.40, random_soft=0.672, full_hard=0.82) == pytest.approx(expected)
    # IOR with and without augmentation, weighted alike.
    expected = (math.exp(0.5 * 0.04 + 0.5 * 0.02) - math.exp(-1)) / (math.e - math.exp(-1))
    found = augmentation_robust_score(0.70, 0.50, random_augmented=0.66, random_plain=0.48)
    assert found == pytest.approx(expected)


def test_is_what_our_scoring_script_computes_from_ddranking_s_percentages() -> None:
    improvement, recovery = 100 * (0.708 - 0.672), 100 * (0.82 - 0.40)
    scripts = score_ddranking.label_robust_score(improvement, recovery)
    assert label_robust_score(0.708, 0.40, 0.672, 0.82) == pytest.approx(scripts)


@given(share, share, share, share, st.floats(0.01, 0.5))
def test_better_images_score_higher(soft: float, hard: float, random: float, full: float, more: float) -> None:
    assert label_robust_score(soft + more, hard, random, full) > label_robust_score(soft, hard, random, full)
    assert label_robust_score(soft, hard + more, random, full) > label_robust_score(soft, hard, random, full)
