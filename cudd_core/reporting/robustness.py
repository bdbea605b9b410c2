"""Accuracy under corruptions (Fig. 4): over severities, and for each corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cudd_core.reporting import theme
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.reading import method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from PIL import Image

Measured = Mapping[str, tuple["NDArray[np.float64]", "NDArray[np.float64]"]]
"""Method → accuracies on clean images [networks], and on corrupted ones [networks, corruptions, severities]."""


def robustness_figure(
    measured: Measured, corruptions: Sequence[str], severities: Sequence[int], title: str
) -> Image.Image:
    """Draw a row of dots per corruption and, for several severities, their mean against severity (0: clean images).

    With a single severity, clean images are a row like the others.
    """
    several = len(severities) > 1
    rows = [*([] if several else ["clean images"]), *(name.replace("_", " ") for name in corruptions)]
    # With a single severity the legend is below, four methods per line.
    below = 0.5 if several else 0.35 + 0.17 * -(-len(measured) // 4)
    width, height = 9.6 if several else 5.4, max(3.6, 0.4 + 0.21 * len(rows) + below)
    figure = theme.new_figure(width, height, title)
    high = (height - 0.6 - below) / height
    colours = method_colours(measured)
    dots = figure.add_axes(((width - 3.6) / width, below / height, 3.4 / width, high))
    theme.quiet_axes(dots)
    for method, (clean, corrupted) in measured.items():
        values = 100 * np.concatenate([[] if several else [clean.mean()], corrupted.mean(axis=(0, 2))])
        dots.plot(values, range(len(rows)), linestyle="", marker="o", markersize=4.5, color=colours[method],
                  markeredgecolor="white", markeredgewidth=0.5, label=method_name(method))  # fmt: skip
    dots.set_yticks(range(len(rows)), rows)
    dots.invert_yaxis()
    strength = "mean over severities" if several else f"severity {severities[0]}"
    heading = f"of each corruption, %, {strength}" if several else f"test accuracy, %, {strength}"
    dots.set_title(heading, fontsize=8.5, color=theme.INK, loc="left")
    if several:
        lines = figure.add_axes((0.5 / width, below / height, 3.7 / width, high))
        theme.quiet_axes(lines)
        for method, (clean, corrupted) in measured.items():
            _over_severities(lines, clean, corrupted, severities, colours[method], method)
        lines.set_xticks([0, *severities])
        lines.set_xlabel("severity (0: clean)", fontsize=9, color=theme.MUTED)
        lines.set_title("test accuracy, %, mean over corruptions", fontsize=8.5, color=theme.INK, loc="left")
        lines.legend(fontsize=8, frameon=False, labelcolor=theme.INK)
    else:
        dots.legend(fontsize=8, frameon=False, labelcolor=theme.INK, loc="upper left", ncols=min(len(measured), 4),
                    bbox_to_anchor=(-0.1, -0.04), columnspacing=1, handletextpad=0)  # fmt: skip
    return theme.rendered(figure)


def _over_severities(
    axes: Axes,
    clean: NDArray[np.float64],
    corrupted: NDArray[np.float64],
    severities: Sequence[int],
    colour: str,
    method: str,
) -> None:
    """Draw one method's line, with bars of one standard deviation over networks."""
    values = 100 * np.concatenate([clean[:, None], corrupted.mean(axis=1)], axis=1)
    spread = values.std(axis=0, ddof=1) if len(values) > 1 else None
    dashed = "--" if method == "teacher" else "-"
    axes.errorbar([0, *severities], values.mean(axis=0), yerr=spread, color=colour, linewidth=1.4, capsize=2,
                  marker="o", markersize=3.5, linestyle=dashed, label=method_name(method))  # fmt: skip
