"""Two figures of a comparison: accuracies beside margins over random real images, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cudd_core.comparison import AS_IT_IS, DISTILLED, OWN
from cudd_core.reporting import theme
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.comparison import Made, Report, shown_variant
from cudd_core.reporting.reading import MISSING, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

ROW, TOP, BOTTOM, RIGHT, BETWEEN, PANELS = 0.27, 0.4, 0.5, 0.25, 0.25, 6.0
"""In inches: the height of a row, the margins around and between the panels, the width of all panels together."""
LONGEST = 80
"""The most characters of a label; a longer one loses its middle."""


def margins_figure(report: Report) -> Image.Image:
    """Draw one row per line of the recipe's own protocol: accuracy on the left, margin over random on the right.

    Bars are one standard deviation (left) and one standard error (right) either way; small dots are single values. A
    hollow dot marks a set that is worse than the random real images of its variant.
    """
    lines = [line for line in report.lines if line.cell.protocol == OWN]
    colours = method_colours({line.cell.method: None for line in lines})
    variants = Counter(one.recipe for one in report.made)
    cells = [line.cell for line in lines]
    labels = _labels([(c.recipe, shown_variant(c, variants[c.recipe]), method_name(c.method), c.arch) for c in cells])
    figure, (accuracy, margin) = _panels(labels, (0.55, 0.45))
    for row, line in enumerate(lines):
        cell, colour = line.cell, colours[line.cell.method]
        loses = line.margin is not None and line.margin.mean < 0
        dot = {"marker": "o", "markersize": 5.5, "color": colour, "markerfacecolor": "white" if loses else colour}
        _label(accuracy, row, labels[row], bold=cell.method == DISTILLED)
        if cell.std is not None:
            accuracy.errorbar([100 * cell.mean], [row], xerr=[100 * cell.std], color=colour, linewidth=1.5, capsize=3)
        if len(cell.values) > 1:
            points = [100 * value for value in cell.values]
            accuracy.plot(points, [row + 0.3] * len(points), linestyle="", marker="o", markersize=2.2, color=colour)
        accuracy.plot([100 * cell.mean], [row], **dot)  # type: ignore[arg-type]
        if line.margin is not None:
            if line.margin.error is not None:
                error = [100 * line.margin.error]
                margin.errorbar([100 * line.margin.mean], [row], xerr=error, color=colour, linewidth=1.5, capsize=3)
            margin.plot([100 * line.margin.mean], [row], **dot)  # type: ignore[arg-type]
    for teacher in sorted({round(100 * line.cell.teacher, 2) for line in lines}):
        accuracy.axvline(teacher, color=theme.INK, linewidth=1, dashes=(4, 3))
    margin.axvline(0, color=theme.INK, linewidth=1)
    accuracy.set_xlabel("test accuracy, % (dashed: teacher)", fontsize=9, color=theme.MUTED)
    margin.set_xlabel("margin over random real images, points", fontsize=9, color=theme.MUTED)
    return theme.rendered(figure)


def cost_figure(made: Sequence[Made]) -> Image.Image | None:
    """Draw the seconds of every set's stages as stacked bars; return None if nothing was timed."""
    rows = [(one, method, seconds) for one in made for method, seconds in one.seconds.items() if any(seconds.values())]
    if not rows:
        return None
    stages = list(dict.fromkeys(stage for *_, seconds in rows for stage in seconds))
    colours = (theme.ACCENT, *theme.OTHER_COLOURS, *(theme.METHOD_COLOURS[name] for name in ("random", "sre2l")))
    labels = _labels([(one.recipe, one.variant, method_name(method)) for one, method, _ in rows])
    figure, (axes,) = _panels(labels, (1.0,))
    for row, (_, method, seconds) in enumerate(rows):
        _label(axes, row, labels[row], bold=method == DISTILLED)
        done = 0.0
        for stage, colour in zip(stages, colours * (1 + len(stages) // len(colours)), strict=False):
            took = seconds.get(stage, 0.0)
            axes.barh([row], [took], left=[done], height=0.55, color=colour, label=stage if row == 0 else None)
            done += took
    axes.set_xlabel("seconds of work on devices", fontsize=9, color=theme.MUTED)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(stages), fontsize=7.5, frameon=False)
    return theme.rendered(figure)


def _panels(labels: Sequence[str], shares: Sequence[float]) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, side by side, with room on their left for the longest label in bold."""
    rows, bold = len(labels), theme.font(100, bold=True)
    left = 0.35 + max((bold.getlength(label) for label in labels), default=0) / 100 * 8.5 / 72
    width, height = left + PANELS + RIGHT, TOP + ROW * max(1, rows) + BOTTOM
    figure = theme.new_figure(width, height)
    room = PANELS - BETWEEN * (len(shares) - 1)
    panels, start = [], left
    for share in shares:
        box = (start / width, BOTTOM / height, share * room / width, (height - TOP - BOTTOM) / height)
        axes = figure.add_axes(box)
        theme.quiet_axes(axes)
        axes.grid(False, axis="y")
        axes.set_ylim(max(1, rows) - 0.5, -0.5)
        axes.set_yticks([])
        panels.append(axes)
        start += share * room + BETWEEN
    return figure, panels


def _label(axes: Axes, row: int, text: str, *, bold: bool) -> None:
    axes.text(-0.02, row, text, transform=axes.get_yaxis_transform(), fontsize=8.5, color=theme.INK, ha="right",
              va="center", weight="bold" if bold else "normal", parse_math=False)  # fmt: skip


def _labels(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the parts of each row as one text, without those that are the same in all rows."""
    told = [len({row[place] for row in rows}) > 1 or len(rows) == 1 for place in range(len(rows[0]) if rows else 0)]
    texts = [
        " · ".join(part for part, tells in zip(row, told, strict=True) if tells and part not in (MISSING, AS_IT_IS))
        or AS_IT_IS
        for row in rows
    ]
    half = LONGEST // 2
    return [text if len(text) <= LONGEST else f"{text[: half - 1]}…{text[-half:]}" for text in texts]
