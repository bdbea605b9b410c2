"""Which of several attempts at a key counts, and what is said of one that did not end."""

from __future__ import annotations

import pytest

from tasks.ledger import Attempt, Ledger
from tasks.refs import Ref

KEY = "a" * 64


def attempt(run_id: str, status: str, started: float, ended: float | None = None, run: str = "") -> Attempt:
    ref = Ref("select", KEY, run_id, "d" * 64, 1) if status == "FINISHED" else None
    return Attempt(run_id, KEY, "select", "select", status, started, ended, run, "", ref, "")


def test_of_several_outputs_the_first_to_end_counts_as_for_readers() -> None:
    """Whichever began first, and in whatever order they are read."""
    attempts = [attempt("b", "FINISHED", 1, 9), attempt("c", "FINISHED", 3, 5), attempt("a", "FINISHED", 2, 9)]
    for order in (attempts, attempts[::-1]):
        ledger = Ledger.of(order)
        assert ledger.stored[KEY].run_id == "c" and not ledger.open
        assert [each.run_id for each in ledger.attempts] == ["c", "a", "b"]
        state = ledger.state("select", KEY, "title")
        assert state.name == "stored" and state.data.run_id == "c"


def test_of_others_the_newest_counts() -> None:
    failed, stopped = attempt("a", "FAILED", 1, 2), attempt("b", "KILLED", 3, 4)
    assert Ledger.of([stopped, failed]).standing(KEY) == "missing"
    assert Ledger.of([stopped, attempt("c", "FAILED", 5, 6)]).standing(KEY) == "failed"
    assert Ledger.of([]).standing(KEY) == "missing"
    assert Ledger.of([failed, attempt("d", "FINISHED", 0, 1)]).standing(KEY) == "stored"


@pytest.mark.parametrize(
    ("run", "going_on", "standing"), [("r", ("r",), "running"), ("r", ("s",), "missing"), ("", ("s",), "running")]
)
def test_work_that_goes_on_is_that_of_a_run_that_does(run: str, going_on: tuple[str, ...], standing: str) -> None:
    assert Ledger.of([attempt("a", "RUNNING", 1, run=run)], going_on).standing(KEY) == standing


def test_what_is_missing_is_referred_to_by_its_key() -> None:
    """So that keys made from it are never found."""
    state = Ledger.of([]).state("select", KEY, "title")
    assert state.name == "missing" and (state.data.digest, state.data.run_id) == (KEY, "")
