"""Two pictures of a comparison: accuracies beside margins over random real images, and where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cudd_core.comparison import DISTILLED, OWN, Line
from cudd_core.reporting import theme
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.comparison import Made, Report, shown_variant
from cudd_core.reporting.reading import MISSING, method_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

ROW, TOP, BOTTOM, LEFT, RIGHT, BETWEEN, WIDTH = 0.27, 0.4, 0.5, 3.3, 0.25, 0.25, 9.6
"""Inches: a line, the margins around and between the two panels, the whole width."""
LONGEST = 44
"""Characters of a label."""


def margins_figure(report: Report) -> Image.Image:
    """Draw one row a line of the recipe's own protocol: accuracy on the left, margin over random on the right.

    Bars are one standard deviation (left) and one standard error (right) either way; small dots are single values. A
    hollow dot lies below the random real images of its variant.
    """
    lines = [line for line in report.lines if line.cell.protocol == OWN]
    figure, (accuracy, margin) = _panels(len(lines), (0.55, 0.45))
    colours = method_colours({line.cell.method: None for line in lines})
    variants = Counter(one.recipe for one in report.made)
    for row, line in enumerate(lines):
        cell, colour = line.cell, colours[line.cell.method]
        loses = line.margin is not None and line.margin.mean < 0
        dot = {"marker": "o", "markersize": 5.5, "color": colour, "markerfacecolor": "white" if loses else colour}
        _label(accuracy, row, _title(line, variants[cell.recipe]), bold=cell.method == DISTILLED)
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
    """Draw the seconds of every set's stages as stacked bars; None where nothing was timed."""
    rows = [(one, method, seconds) for one in made for method, seconds in one.seconds.items() if any(seconds.values())]
    if not rows:
        return None
    stages = list(dict.fromkeys(stage for *_, seconds in rows for stage in seconds))
    colours = (theme.ACCENT, *theme.OTHER_COLOURS, *(theme.METHOD_COLOURS[name] for name in ("random", "sre2l")))
    figure, (axes,) = _panels(len(rows), (1.0,))
    for row, (one, method, seconds) in enumerate(rows):
        _label(axes, row, _joined([one.recipe, one.variant, method_name(method)]), bold=method == DISTILLED)
        done = 0.0
        for stage, colour in zip(stages, colours * (1 + len(stages) // len(colours)), strict=False):
            took = seconds.get(stage, 0.0)
            axes.barh([row], [took], left=[done], height=0.55, color=colour, label=stage if row == 0 else None)
            done += took
    axes.set_xlabel("seconds of work on devices", fontsize=9, color=theme.MUTED)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(stages), fontsize=7.5, frameon=False)
    return theme.rendered(figure)


def _panels(rows: int, shares: Sequence[float]) -> tuple[Figure, list[Axes]]:
    height = TOP + ROW * max(1, rows) + BOTTOM
    figure = theme.new_figure(WIDTH, height)
    room = WIDTH - LEFT - RIGHT - BETWEEN * (len(shares) - 1)
    panels, start = [], LEFT
    for share in shares:
        box = (start / WIDTH, BOTTOM / height, share * room / WIDTH, (height - TOP - BOTTOM) / height)
        axes = figure.add_axes(box)
        theme.quiet_axes(axes)
        axes.grid(False, axis="y")
        axes.set_ylim(max(1, rows) - 0.5, -0.5)
        axes.set_yticks([])
        panels.append(axes)
        start += share * room + BETWEEN
    return figure, panels


def _label(axes: Axes, row: int, text: str, *, bold: bool) -> None:
    shown = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    axes.text(-0.02, row, shown, transform=axes.get_yaxis_transform(), fontsize=8.5, color=theme.INK, ha="right",
              va="center", weight="bold" if bold else "normal", parse_math=False)  # fmt: skip


def _title(line: Line, variants: int) -> str:
    cell = line.cell
    return _joined([cell.recipe, shown_variant(cell, variants), method_name(cell.method), cell.arch])


def _joined(parts: Sequence[str]) -> str:
    return " · ".join(part for part in parts if part not in (MISSING, "as it is"))
