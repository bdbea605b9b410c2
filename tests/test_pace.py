"""Checkpoints take their share of the time and no more."""

from __future__ import annotations

from itertools import pairwise

import pytest

from cudd_core import pace


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(pace, "monotonic", lambda: self.now)


@pytest.mark.parametrize("takes", [0.001, 0.2, 30.0])
def test_saving_takes_the_share_that_it_may(takes: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An occasion every millisecond or every half second, a save that takes longer or less than that."""
    for step in (0.001, 0.5):
        clock = Clock(monkeypatch)
        paced, began, saved = pace.Pace(), clock.now, []
        assert paced.due()  # the first one, whose price nobody knows
        while clock.now < began + 120 * max(takes, step):
            clock.now += step
            if paced.due():
                saved.append(clock.now)
                with paced.saving():
                    clock.now += takes
        share = len(saved[1:]) * takes / (clock.now - began)
        assert share <= pace.MOST + 1e-9
        gap = max(late - early for early, late in pairwise(saved))
        assert gap <= takes / pace.MOST + step + 1e-6


def test_what_costs_nothing_is_always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, paced = Clock(monkeypatch), pace.Pace()
    for _ in range(3):
        assert paced.due()
        with paced.saving():
            pass
    with paced.saving():
        clock.now += 1
    assert not paced.due()
    clock.now += 48.9
    assert not paced.due()
    clock.now += 0.2
    assert paced.due()


def test_a_save_that_fails_leaves_the_pace_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    paced = pace.Pace()
    with pytest.raises(OSError, match="full"), paced.saving():
        raise OSError("full")
    assert paced.due()
