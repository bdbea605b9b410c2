"""The harness: bodies in turn, ratios within a round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.timing import Rounds, Spread, alternately, report


def test_every_round_runs_each_body_once_and_turns_round() -> None:
    order: list[str] = []
    rounds = alternately(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0, warm_up=1, least=3
    )
    assert "".join(order) == "baabbaab"
    assert len(rounds.wall["a"]) == len(rounds.wall["b"]) == len(rounds.cpu["a"]) == 3


def test_a_ratio_is_taken_within_a_round() -> None:
    """Every round twice as slow as the one before: the ratio of the bodies does not notice."""
    rounds = Rounds({"a": [3.0, 6.0, 12.0], "b": [2.0, 4.0, 8.0]}, {"a": [3.0], "b": [2.0]})
    assert rounds.ratio("a", "b") == Spread(1.5, 1.5, 1.5, 3)
    assert rounds.busy
    assert not replace(rounds, device="cuda").busy, "of a GPU nobody knows"
    assert not Rounds({"a": [3.0], "b": [2.0]}, {"a": [3.0], "b": [1.9]}).busy


def test_a_report_is_a_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"case": "x", "ratio": Spread.of([1.0, 2.0, 3.0]), "holds": False}]
    report("a claim", rows, {"seed": 3}, tmp_path / "new" / "out.json")
    written = json.loads((tmp_path / "new" / "out.json").read_text())
    assert written["seed"] == 3 and written["rows"][0]["ratio"] == {"median": 2.0, "low": 1.5, "high": 2.5, "n": 3}
    printed = capsys.readouterr().out
    assert "2 (1.5 – 2.5)" in printed and "NO" in printed
