"""Curves of what was logged during training or synthesis, one small panel per quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cudd_core.reporting import theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

NAMES = {
    "ce": "cross-entropy (ce)",
    "bn": "BatchNorm alignment (bn)",
    "reg": "distance to originals (reg)",
    "adv": "adversarial (adv)",
}
ACROSS = 4


def training_curves(rows: Sequence[Mapping[str, float]], title: str) -> Image.Image:
    """Draw every logged quantity over iterations or epochs, each in a panel with its own scale.

    All rows have the same quantities, and all are finite: a training or synthesis that diverges ends. One that spans
    more than two decades gets a logarithmic axis, except for the learning rate, whose schedule is recognised by its
    shape on a linear axis.
    """
    step = "iteration" if "iteration" in rows[0] else "epoch"
    series = {key: [row[key] for row in rows] for key in rows[0] if key != step}

    across, down = min(ACROSS, len(series)), -(-len(series) // ACROSS)
    width, height = max(3.2, 2.35 * across), 0.3 + 1.75 * down
    figure = theme.new_figure(width, height, title)
    for place, (key, values) in enumerate(series.items()):
        row, column = divmod(place, across)
        left, bottom = column * width / across + 0.5, height - 0.3 - (row + 1) * 1.75 + 0.46
        axes = figure.add_axes((left / width, bottom / height, (width / across - 0.65) / width, 0.98 / height))
        _panel(axes, [row[step] for row in rows], values, key)
        axes.set_xlabel(step, fontsize=8, color=theme.MUTED, labelpad=2)
    return theme.rendered(figure)


def _panel(axes: Axes, places: Sequence[float], values: Sequence[float], key: str) -> None:
    theme.quiet_axes(axes)
    axes.grid(False, axis="x")
    alone = len(values) == 1
    axes.plot(places, values, color=theme.ACCENT, linewidth=1.4, marker="o" if alone else "", markersize=4)
    if key != "learning_rate" and min(values) > 0 and max(values) / min(values) > 100:
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.locator_params(axis="y", nbins=4)
    axes.locator_params(axis="x", nbins=4, integer=True)
    axes.set_title(
        NAMES.get(key, key.replace("_", " ")), fontsize=8.5, color=theme.INK, loc="left", pad=5, parse_math=False
    )
