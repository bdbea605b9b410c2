"""Curves of what was logged during training or synthesis, one small panel per quantity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cudd_core.reporting import theme
from cudd_core.reporting.reading import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

STEPS = ("iteration", "epoch", "step")
"""Names that a row may use for its horizontal position; without any, rows are counted."""
NAMES = {
    "ce": "cross-entropy (ce)",
    "bn": "BatchNorm alignment (bn)",
    "reg": "distance to originals (reg)",
    "adv": "adversarial (adv)",
}
ACROSS = 4


def training_curves(rows: Sequence[Mapping[str, float]], title: str) -> Image.Image:
    """Draw every logged quantity over iterations or epochs, each in a panel with its own scale.

    A quantity that is missing or not finite in a row leaves a gap. One that spans more than two decades gets a
    logarithmic axis, except for the learning rate, whose schedule is recognised by its shape on a linear axis.
    """
    step = next((name for name in STEPS if any(name in row for row in rows)), "")
    keys = list(dict.fromkeys(key for row in rows for key in row if key != step))
    series = {key: [number(row.get(key)) for row in rows] for key in keys}
    series = {key: values for key, values in series.items() if any(value is not None for value in values)}
    places = [number(row.get(step)) if step else float(place) for place, row in enumerate(rows, start=1)]

    across, down = min(ACROSS, max(1, len(series))), max(1, -(-len(series) // ACROSS))
    width, height = max(3.2, 2.35 * across), 0.3 + 1.75 * down
    figure = theme.new_figure(width, height, title)
    if not series:
        figure.text(0.5, 0.4, "nothing was logged", color=theme.MUTED, fontsize=10, ha="center", va="center")
        return theme.rendered(figure)
    for place, (key, values) in enumerate(series.items()):
        row, column = divmod(place, across)
        left, bottom = column * width / across + 0.5, height - 0.3 - (row + 1) * 1.75 + 0.46
        axes = figure.add_axes((left / width, bottom / height, (width / across - 0.65) / width, 0.98 / height))
        _panel(axes, places, values, key)
        axes.set_xlabel(step or "logged row", fontsize=8, color=theme.MUTED, labelpad=2)
    return theme.rendered(figure)


def _panel(axes: Axes, places: Sequence[float | None], values: Sequence[float | None], key: str) -> None:
    theme.quiet_axes(axes)
    axes.grid(False, axis="x")
    percent = key.endswith("accuracy")
    x = [math.nan if place is None else place for place in places]
    y = [math.nan if value is None else value * (100 if percent else 1) for value in values]
    finite = [value for value in y if math.isfinite(value)]
    alone = len(finite) == 1
    axes.plot(x, y, color=theme.ACCENT, linewidth=1.4, marker="o" if alone else "", markersize=4)
    if key != "learning_rate" and min(finite) > 0 and max(finite) / min(finite) > 100:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=4, integer=True)
    name = NAMES.get(key, key.replace("_", " ")) + (", %" if percent else "")
    axes.set_title(name, fontsize=8.5, color=theme.INK, loc="left", pad=5, parse_math=False)
