"""Pictures and the page at the end of a run. Drawing libraries are imported when something is drawn.

Nothing here carries a timestamp: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cudd_core.reporting.accuracy import accuracy_figure
from cudd_core.reporting.curves import training_curves
from cudd_core.reporting.grid import preview_grid
from cudd_core.reporting.page import page
from cudd_core.reporting.poster import poster
from cudd_core.reporting.theme import png_bytes

__all__ = ["accuracy_figure", "png_bytes", "poster", "preview_grid", "training_curves", "write_report"]


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    picture: bytes,
    accuracy: bytes,
    grids: Mapping[str, bytes],
    curves: Mapping[str, bytes],
) -> Path:
    """Write `report.html` (self-contained: images embedded, no scripts, no network) and `report.png` (for a README).

    Pictures are PNG files; nothing is drawn here, since what changes with every run, such as its seconds, is text.

    Args:
        folder: where to write; made if missing.
        summary: the run's summary as `--summary` writes it. What it lacks is left out of the report.
        picture: what `report.png` will be: a `poster`.
        accuracy: `accuracy_figure` of the summary.
        grids: title → picture, in the order of the curricula.
        curves: title → picture.

    Returns:
        The path of `report.html`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.png").write_bytes(picture)
    target = folder / "report.html"
    target.write_bytes(page(summary, accuracy, grids, curves).encode("utf-8"))
    return target
