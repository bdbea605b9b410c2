"""What is drawn is what was measured, and where its label says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cudd_core.comparison import DISTILLED, HARD, OWN, RANDOM, Cell, tabulate
from cudd_core.reporting import theme
from cudd_core.reporting.accuracy import accuracy_figure
from cudd_core.reporting.comparison import Made, Report
from cudd_core.reporting.comparison_figure import cost_figure, margins_figure


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    figures: list[Any] = []
    monkeypatch.setattr(theme, "rendered", figures.append)
    return figures


def dots(axes: Any) -> dict[float, list[float]]:
    """Height → places of dots."""
    lines = [line for line in axes.lines if line.get_marker() == "o"]
    return {line.get_ydata()[0]: list(line.get_xdata()) for line in lines}


def bars(axes: Any) -> dict[float, list[float]]:
    """Height → ends of the error bar."""
    segments = [each for found in axes.containers for each in found.lines[2][0].get_segments()]
    return {ends[0][1]: [place for place, _ in ends] for ends in segments}


def uprights(axes: Any) -> set[float]:
    return {
        line.get_xdata()[0] for line in axes.lines if line.get_marker() == "None" and list(line.get_ydata()) == [0, 1]
    }


def labels(axes: Any) -> list[tuple[str, str]]:
    """Text and weight, from above."""
    return [
        (each.get_text(), each.get_weight()) for each in sorted(axes.texts, key=lambda each: each.get_position()[1])
    ]


def test_margins_lie_beside_their_accuracies_and_labels(drawn: list[Any]) -> None:
    def cell(method: str, *values: float, variant: str = "a", protocol: str = OWN) -> Cell:
        return Cell(
            *("r", variant, method, "net", protocol, 10, values, len(values), 0.8205, None, 1, 1, None),
            identity=(method, variant if method == DISTILLED else "", protocol),
        )

    cells = [
        cell(DISTILLED, 0.70, 0.72),
        cell(DISTILLED, 0.30, protocol=HARD),
        cell(RANDOM, 0.60, 0.62),
        cell(DISTILLED, 0.53, variant="b"),
        cell(RANDOM, 0.60, 0.62, variant="b"),
    ]
    made = tuple(Made("r", name, (10,), (0,), ("",), ("",)) for name in "ab")
    margins_figure(Report("r", "", tabulate(cells, {("r", "a"): ("r", "a"), ("r", "b"): ("r", "a")}), made))
    accuracy, margin = drawn[0].axes
    small = {0.3: pytest.approx([70, 72]), 1.3: pytest.approx([60, 62])}
    assert dots(accuracy) == {0: pytest.approx([71]), 1: pytest.approx([61]), 2: pytest.approx([53])} | small
    assert dots(margin) == {0: pytest.approx([10]), 2: pytest.approx([-8])}
    one = math.sqrt(2)  # the standard deviation of each pair
    assert bars(accuracy) == {0: pytest.approx([71 - one, 71 + one]), 1: pytest.approx([61 - one, 61 + one])}
    assert bars(margin) == {0: pytest.approx([10 - one, 10 + one])}, "one network has no spread"
    assert uprights(accuracy) == {82.05} and uprights(margin) == {0}
    assert labels(accuracy) == [("a · Distilled", "bold"), ("Random real", "normal"), ("b · Distilled", "bold")]


def test_costs_are_stacked_in_the_order_of_the_stages(drawn: list[Any]) -> None:
    own, random = {"select": 1.0, "synthesize": 4.0}, {"select": 2.0, "labels": 0.5}
    cost_figure((Made("r", "a", (10,), (0,), ("",), ("",), {}, {DISTILLED: own, RANDOM: random, "cda": {"x": 0.0}}),))
    (axes,) = drawn[0].axes
    boxes = [(each.get_y() + each.get_height() / 2, each.get_x(), each.get_width()) for each in axes.patches]
    assert [(round(row), left, wide) for row, left, wide in boxes if wide] == [
        *((0, 0, 1), (0, 1, 4)),
        *((1, 0, 2), (1, 2, 0.5)),
    ]
    handles = axes.get_legend().get_patches()
    names = [each.get_text() for each in axes.get_legend().get_texts()]
    assert names == ["select", "synthesize", "labels"], "each once, also one that the first set lacks"
    colours = [each.get_facecolor() for each in handles]
    assert len(set(colours)) == 3
    assert [each.get_facecolor() for each in axes.patches if each.get_width()] == [colours[n] for n in (0, 1, 0, 2)]
    assert labels(axes) == [("Distilled", "bold"), ("Random real", "normal")]


def test_accuracies_stand_in_the_row_of_their_set_and_network(drawn: list[Any]) -> None:
    def of(*values: float) -> dict[str, Any]:
        mean = sum(values) / len(values)
        return {"mean": mean, "std": 0.02 if len(values) > 1 else 0.0, "n": len(values), "values": list(values)}

    accuracy_figure(
        {
            "teacher": 0.9,
            "random": {"one": of(0.5), "two": of(0.3)},
            "distilled": {"one": of(0.6, 0.62), "two": of(0.4)},
        }
    )
    (axes,) = drawn[0].axes
    heights = sorted(dots(axes))
    found = dots(axes)
    assert [found[height] for height in heights] == [
        pytest.approx(places) for places in ([61], [60, 62], [50], [40], [30])
    ]
    assert bars(axes) == {heights[0]: pytest.approx([59, 63])}
    assert 90 in {line.get_xdata()[0] for line in axes.lines}
    said = [text for text, _ in labels(axes)]
    assert said[0] == "teacher 90.0\u00a0%"
    assert said[1:] == [
        "one",
        *("Distilled", "61.0 ± 2.0", "n = 2", "Random real", "50.0", "n = 1"),
        "two",
        *("Distilled", "40.0", "n = 1", "Random real", "30.0", "n = 1"),
    ]
