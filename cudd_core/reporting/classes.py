"""Accuracy by class: which classes networks get wrong, and what comes out if every class counts the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from cudd_core.reporting.markup import Html, element, table
from cudd_core.reporting.tables import Table, Value

SHOWN = 20
"""The most classes that a page lists."""
_FIRST = 2
"""The first column of accuracies, after the class and the number of its test images."""


def class_table(names: Sequence[str], images: Sequence[int], measured: Mapping[str, Sequence[float]]) -> Table:
    """Return a row for each class that has test images: its name, their number, and the accuracies.

    Args:
        names: K class names.
        images: how many test images each class has.
        measured: heading → accuracy on each class, in [0, 1].
    """
    rows = [row for row in zip(names, images, *measured.values(), strict=True) if row[1]]
    return Table.of(("class", "test_images", *measured), rows)


def section(by_class: Table) -> Html:
    """Show a `class_table`: all classes, or the `SHOWN` on which the first accuracies are lowest; below, the means."""
    count = len(by_class.rows)
    rows = by_class.rows if count <= SHOWN else sorted(by_class.rows, key=lambda row: row[_FIRST])[:SHOWN]
    means = [fmean(map(float, column)) for column in list(zip(*by_class.rows, strict=True))[_FIRST:]]
    every = "Every class counts the same in the last line, however many test images it has."
    return element(
        "section",
        element("h2", "Accuracy by class"),
        element("p", every if count <= SHOWN else f"The {SHOWN} hardest of {count:,} classes. {every}", class_="note"),
        table(
            [name.replace("_", " ") for name in by_class.columns],
            [
                *([row[0], f"{row[1]:,}", *map(_percent, row[_FIRST:])] for row in rows),
                [f"mean over {count:,} classes", "", *map(_percent, means)],
            ],
        ),
    )


def _percent(share: Value) -> str:
    return f"{100 * float(share):.1f}"
