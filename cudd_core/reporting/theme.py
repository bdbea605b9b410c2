"""One look for all pictures: colours, the font, and how a figure becomes an image and an image becomes bytes."""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image, ImageFont

INK = "#1f2933"
MUTED = "#66727f"
RULE = "#d9dee3"
ACCENT = "#17697f"
METHOD_COLOURS = {
    "distilled": ACCENT,
    "selection": "#6f9a6b",
    "random": "#7f8a9a",
    "herding": "#4f7cac",
    "kcenter": "#8c8046",
    "sre2l": "#bf7f45",
    "cda": "#8a6fa8",
}
OTHER_COLOURS = ("#a85d6a", "#5b6abf", "#a3874f", "#5c8d89")
"""Methods that this package does not know by name take these in turn."""
SCALE = 2
"""Figures are drawn at twice the resolution of a plain screen (96 dots per inch), grids at their own resolution."""


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Return a figure of `width` × `height` inches on an Agg canvas of its own (no pyplot, no global state).

    It is empty except for the title in its upper left corner, which is made smaller if it would not fit.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=96 * SCALE, facecolor="white")
    FigureCanvasAgg(figure)
    if title:
        corner = (0.1 / width, 1 - 0.1 / height)
        text = figure.text(*corner, title, color=INK, fontsize=10, weight="bold", va="top", parse_math=False)
        taken = text.get_window_extent().width / figure.dpi
        text.set_fontsize(10 * min(1, (width - 0.2) / taken))
    return figure


def quiet_axes(axes: Axes) -> None:
    """Keep of the frame only what helps reading: light rules, no box, small muted tick labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(RULE)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=MUTED)
    axes.set_axisbelow(True)
    axes.grid(True, color=RULE, linewidth=0.6)


def rendered(figure: Figure) -> Image.Image:
    """Draw the figure into an RGB image that knows its resolution (`info["dpi"]`)."""
    from PIL import Image

    canvas: Any = figure.canvas  # its methods carry no annotations
    canvas.draw()
    width, height = canvas.get_width_height()
    image = Image.frombytes("RGBA", (width, height), bytes(canvas.buffer_rgba())).convert("RGB")
    image.info["dpi"] = (96 * SCALE, 96 * SCALE)
    return image


def png_bytes(image: Image.Image) -> bytes:
    """Encode as PNG. The same pixels give the same bytes: no timestamp, no software name."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, dpi=image.info.get("dpi"))
    return buffer.getvalue()


def can_show(text: str) -> bool:
    """Whether the font has all of a text's characters; missing ones would all appear as the same empty box."""
    return all(ord(character) in _characters() for character in text if not character.isspace())


@lru_cache(maxsize=1)
def _characters() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(_font_file(bold=False)).get_charmap())


@lru_cache(maxsize=16)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font that matplotlib ships, so that grids and figures match on every machine."""
    from PIL import ImageFont

    return ImageFont.truetype(_font_file(bold), size, layout_engine=ImageFont.Layout.BASIC)


def _font_file(bold: bool) -> str:
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name)
