"""The picture for a README: the accuracy figure beside a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cudd_core.reporting.theme import SCALE

if TYPE_CHECKING:
    from PIL import Image

MARGIN, GAP, EDGE = 24, 40, 12
HEIGHT, WIDEST = 650, 1800
"""In pixels. The grid is at most as high as the figure or `HEIGHT`, whichever is more, and at most `WIDEST` wide."""


def poster(figure: Image.Image, grid: Image.Image) -> Image.Image:
    """Place the accuracy figure beside the first groups of a `preview_grid`, about as high."""
    from PIL import Image

    parts = [figure, _fitted(grid, max(figure.height, HEIGHT))]
    height = max(part.height for part in parts)
    width = sum(part.width for part in parts) + GAP
    composed = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), "white")
    left = MARGIN
    for part in parts:
        composed.paste(part, (left, MARGIN + (height - part.height) // 2))
        left += part.width + GAP
    return composed


def _fitted(grid: Image.Image, height: int) -> Image.Image:
    """Cut the grid below the last group that fits, keeping at least one, and bring it to the figure's resolution."""
    from PIL import Image

    ends = grid.info["group_ends"]
    fitting = [end for end in ends if SCALE * (end + EDGE) <= height] or ends[:1]
    kept = grid.crop((0, 0, grid.width, fitting[-1] + EDGE))
    scale = min(SCALE, WIDEST / kept.width, height / kept.height)
    method = Image.Resampling.NEAREST if scale == SCALE else Image.Resampling.LANCZOS
    return kept.resize((round(kept.width * scale), round(kept.height * scale)), method)
