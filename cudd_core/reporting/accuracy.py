"""Accuracy of every method on every architecture: mean, spread and single networks, beside the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cudd_core.reporting import theme
from cudd_core.reporting.reading import Score, method_name, percent, scores, spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

WIDTH, ROW, HEADING, TOP, BOTTOM, LEFT, RIGHT = 6.6, 0.27, 0.34, 0.42, 0.5, 1.3, 1.6
"""In inches: the width of the figure, the height of a method's row and of an architecture's name, the four margins."""
LONGEST = 17
"""Characters of a name that fit beside its row."""


def accuracy_figure(accuracy: Mapping[str, Any]) -> Image.Image:
    """Draw a summary's `accuracy` as a dot plot: one row per method under each architecture, the teacher a dashed line.

    Large dots are means, bars one standard deviation either way, small dots below them single networks.
    """
    measured, reference = scores(accuracy), accuracy["teacher"]
    archs = tuple(measured["distilled"])
    plot = sum(HEADING + ROW * len(measured) for _ in archs)
    height = TOP + plot + BOTTOM
    figure = theme.new_figure(WIDTH, height)
    axes = figure.add_axes((LEFT / WIDTH, BOTTOM / height, (WIDTH - LEFT - RIGHT) / WIDTH, plot / height))
    theme.quiet_axes(axes)
    axes.grid(False, axis="y")
    axes.set_ylim(plot, 0)
    axes.set_xlim(*_limits(measured, reference))
    axes.set_yticks([])
    axes.set_xlabel("test accuracy, %", fontsize=9, color=theme.MUTED)

    colours = method_colours(measured)
    margin = axes.get_yaxis_transform()
    inch = 1 / (WIDTH - LEFT - RIGHT)  # as a share of the plot's width
    depth = 0.0
    for arch in archs:
        axes.text((0.12 - LEFT) * inch, depth + HEADING / 2, arch, transform=margin, fontsize=9.5,
                  weight="bold", color=theme.INK, va="center", parse_math=False)  # fmt: skip
        axes.axhline(depth, color=theme.RULE, linewidth=0.6)
        depth += HEADING
        for method, by_arch in measured.items():
            _row(axes, depth + ROW / 2, method, by_arch[arch], colours[method], inch)
            depth += ROW
    axes.axvline(100 * reference, color=theme.INK, linewidth=1.1, dashes=(4, 3))
    axes.text(100 * reference, -0.08, f"teacher {percent(reference)}", fontsize=8.5, color=theme.INK,
              ha="center", va="bottom")  # fmt: skip
    return theme.rendered(figure)


def method_colours(measured: Mapping[str, object]) -> dict[str, str]:
    """Return the colour of each method, the same in the figure and in the table."""
    others = [method for method in measured if method not in theme.METHOD_COLOURS]
    spare = {method: theme.OTHER_COLOURS[i % len(theme.OTHER_COLOURS)] for i, method in enumerate(others)}
    return {method: theme.METHOD_COLOURS.get(method) or spare[method] for method in measured}


def _row(axes: Axes, depth: float, method: str, score: Score, colour: str, inch: float) -> None:
    weight = "bold" if method == "distilled" else "normal"
    margin = axes.get_yaxis_transform()
    mean = 100 * score.mean
    axes.axhline(depth, color=theme.RULE, linewidth=0.5, dashes=(1, 3))
    axes.text(-0.1 * inch, depth, _short(method_name(method)), transform=margin, fontsize=9, weight=weight,
              color=theme.INK, ha="right", va="center", parse_math=False)  # fmt: skip
    if score.std is not None:
        axes.errorbar([mean], [depth], xerr=[100 * score.std], color=colour, linewidth=1.5, capsize=3)
    if len(score.values) > 1:
        axes.plot([100 * value for value in score.values], [depth + 0.085] * len(score.values), linestyle="",
                  marker="o", markersize=2.4, color=colour, alpha=0.7, markeredgewidth=0)  # fmt: skip
    axes.plot([mean], [depth], marker="o", markersize=5.5, color=colour, markeredgecolor="white", markeredgewidth=0.6)
    axes.text(1 + 0.12 * inch, depth, spread(score), transform=margin, fontsize=9, weight=weight, color=theme.INK,
              va="center")  # fmt: skip
    axes.text(1 + (RIGHT - 0.1) * inch, depth, f"n = {score.n}", transform=margin, fontsize=8, color=theme.MUTED,
              va="center", ha="right")  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _limits(measured: Mapping[str, Mapping[str, Score]], reference: float) -> tuple[float, float]:
    found = [100 * reference]
    for by_architecture in measured.values():
        for score in by_architecture.values():
            reach = 100 * (score.std or 0.0)
            found += [100 * score.mean - reach, 100 * score.mean + reach, *(100 * value for value in score.values)]
    room = max(2.0, 0.06 * (max(found) - min(found)))
    return max(-1.0, min(found) - room), min(101.0, max(found) + room)
