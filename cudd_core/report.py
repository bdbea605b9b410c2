"""Pictures and the page at the end of a run. Drawing libraries are imported when something is drawn.

Nothing here carries a timestamp: the same input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cudd_core.reporting.accuracy import accuracy_figure
from cudd_core.reporting.curves import training_curves
from cudd_core.reporting.grid import preview_grid
from cudd_core.reporting.page import page
from cudd_core.reporting.poster import poster
from cudd_core.reporting.theme import png_bytes

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["accuracy_figure", "png_bytes", "preview_grid", "training_curves", "write_report"]


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    grids: Mapping[str, Image.Image],
    curves: Mapping[str, Image.Image],
) -> Path:
    """Write `report.html` (self-contained: images embedded, no scripts, no network) and `report.png` (for a README).

    Args:
        folder: where to write; made if missing.
        summary: the run's summary as `--summary` writes it. What it lacks is left out of the report.
        grids: title → image, in the order of the curricula; the last one goes into `report.png`.
        curves: title → image.

    Returns:
        The path of `report.html`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accuracy = accuracy_figure(summary)
    (folder / "report.png").write_bytes(png_bytes(poster(accuracy, grids)))
    target = folder / "report.html"
    target.write_bytes(page(summary, accuracy, grids, curves).encode("utf-8"))
    return target
