"""A table of results as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cudd_core.significance import deviation

Value = str | int | float


@dataclass(frozen=True)
class Table:
    """`columns` name the cells of each of `rows`; the first `texts` of them are text, the others figures."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]
    texts: int = 1

    @classmethod
    def of(cls, columns: Sequence[str], rows: Iterable[Sequence[Value]], texts: int = 1) -> Table:
        """Return a table made of any sequences."""
        return cls(tuple(columns), tuple(tuple(row) for row in rows), texts)

    def markdown(self) -> str:
        """Return a GitHub table: figures aligned right, floats with three significant digits."""
        sides = tuple("---" if place < self.texts else "---:" for place in range(len(self.columns)))
        lines = [self.columns, sides, *self.rows]
        return "".join(f"| {' | '.join(_text(cell) for cell in line)} |\n" for line in lines)

    def csv(self) -> str:
        """Return comma-separated values with a header; floats in full."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return stream.getvalue()

    def records(self) -> list[dict[str, Value]]:
        """Return one mapping per row, as Prefect's table artifacts take them."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def summary_of(values: Sequence[float]) -> dict[str, object]:
    """Return mean, sample standard deviation (0 for one value), n, and the values themselves."""
    return {"mean": fmean(values), "std": deviation(values) or 0.0, "n": len(values), "values": list(values)}


def shown_summary(found: Mapping[str, Any], digits: int = 1) -> str:
    """Return the `summary_of` some accuracies in the form of `mean_and_spread`."""
    return mean_and_spread(found["mean"], None if found["n"] == 1 else found["std"], digits)


def shown(values: Sequence[float]) -> str:
    """Return accuracies, given as fractions, in per cent: `63.4 ± 0.5`, without the spread for a single one."""
    return mean_and_spread(fmean(values), deviation(values))


def mean_and_spread(mean: float, std: float | None, digits: int = 1) -> str:
    """Return an accuracy, given as a fraction, in per cent: `63.4 ± 0.5`; `std` is None for a single value."""
    return f"{100 * mean:.{digits}f}" + ("" if std is None else f" ± {100 * std:.{digits}f}")


def _text(cell: Value) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else " ".join(str(cell).replace("|", "\\|").split())
