"""Originals above the synthetic images made from them, enlarged so that even eight-pixel digits can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cudd_core.reporting import theme

if TYPE_CHECKING:
    from PIL import Image, ImageDraw
    from torch import Tensor

MARGIN, GAP, GROUP_GAP, LEGEND, LINE = 12, 4, 18, 78, 13
TARGET, LARGEST = 64, 128
"""A cell is enlarged to at least `TARGET` pixels and reduced to at most `LARGEST`, always by a whole factor."""
_MOST_GROUPS = 5


@dataclass(frozen=True)
class GridLayout:
    """Where each cell goes. `rows` is 2 with originals (0: original, 1: synthetic) and 1 without.

    `headers[g]` is the number of text lines above group g: 0 if it repeats the names of the group above.
    """

    columns: int
    rows: int
    cell: tuple[int, int]
    headers: tuple[int, ...]

    def group_top(self, group: int) -> int:
        """Return the vertical position of a group's header."""
        body = self.rows * (self.cell[1] + GAP) - GAP
        lines = sum(self._header(before) for before in self.headers[:group])
        return MARGIN + lines + group * (body + GROUP_GAP)

    def position(self, index: int, row: int) -> tuple[int, int]:
        """Return the upper left corner of image `index` in a row of its group."""
        group, column = divmod(index, self.columns)
        top = self.group_top(group) + self._header(self.headers[group]) + row * (self.cell[1] + GAP)
        return MARGIN + LEGEND + column * (self.cell[0] + GAP), top

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture, without the footer."""
        width = 2 * MARGIN + LEGEND + self.columns * (self.cell[0] + GAP) - GAP
        return width, self.group_top(len(self.headers)) - GROUP_GAP + MARGIN

    @staticmethod
    def _header(lines: int) -> int:
        return lines * LINE + 4 if lines else 0


def cell_factor(height: int, width: int) -> tuple[int, int]:
    """Return (enlarge, reduce), whole numbers of which at least one is 1.

    Example:
        >>> cell_factor(8, 8), cell_factor(32, 32), cell_factor(64, 64), cell_factor(224, 224)
        ((8, 1), (2, 1), (1, 1), (1, 2))
    """
    longest = max(height, width)
    return max(1, -(-TARGET // longest)), max(1, -(-longest // LARGEST))


def preview_grid(
    originals: Tensor | None,
    synthetic: Tensor,
    class_names: Sequence[str],
    labels: Sequence[int] | Tensor,
    *,
    columns: int = 10,
) -> Image.Image:
    """Draw groups of `columns` images: class names, the row of originals (if any), the row of synthetic images.

    At most five groups are drawn; a line below says if images are left out.

    Args:
        originals: uint8 [n, C, H, W], the real image that each synthetic one started from; None for noise.
        synthetic: uint8 [n, C, H, W].
        class_names: name of every class; `labels[i]` indexes it, and replaces a name that the font cannot show.
        labels: class of each image, n of them.
        columns: images side by side.

    Returns:
        An RGB image. Each pixel becomes a square, enlarged by `cell_factor`; images above 128 px are averaged down.
        `info["group_ends"]` holds the lower edge of each group, where the picture may be cut.

    Raises:
        ValueError: shapes, dtypes or counts do not fit.
    """
    from PIL import Image, ImageDraw

    numbers = [int(label) for label in labels]
    for name, images in (("originals", originals), ("synthetic", synthetic)):
        if images is not None and (str(images.dtype) != "torch.uint8" or images.ndim != 4):
            raise ValueError(f"{name}: expected uint8 [n, C, H, W], got {images.dtype} {tuple(images.shape)}.")
    if originals is not None and originals.shape != synthetic.shape:
        raise ValueError(f"originals {tuple(originals.shape)} and synthetic {tuple(synthetic.shape)} differ in shape.")
    if not numbers or len(numbers) != len(synthetic) or columns < 1:
        raise ValueError(f"{len(synthetic)} images, {len(numbers)} labels, {columns} columns.")

    columns = min(columns, len(numbers))
    shown = numbers[: columns * _MOST_GROUPS]
    enlarge, reduce = cell_factor(synthetic.shape[2], synthetic.shape[3])
    cell = tuple(-(-side // reduce) * enlarge for side in (synthetic.shape[3], synthetic.shape[2]))
    named = [0 <= k < len(class_names) and theme.can_show(class_names[k]) for k in shown]
    captions = [wrapped(class_names[k] if known else str(k), cell[0]) for k, known in zip(shown, named, strict=True)]
    rows = [("synthetic", synthetic)] if originals is None else [("original", originals), ("synthetic", synthetic)]
    layout = GridLayout(columns, len(rows), (cell[0], cell[1]), _header_lines(captions, columns))

    footer = "" if len(shown) == len(numbers) else f"the first {len(shown)} of {len(numbers)} images"
    width, height = layout.size
    picture = Image.new("RGB", (width, height + (LINE + 6 if footer else 0)), "white")
    pen = ImageDraw.Draw(picture)
    for group in range(len(layout.headers)):
        for row, (name, _) in enumerate(rows):
            middle = layout.position(group * columns, row)[1] + cell[1] // 2
            bold = name == "synthetic"
            pen.text(
                (MARGIN + LEGEND - 10, middle),
                name,
                fill=theme.ACCENT if bold else theme.MUTED,
                font=theme.font(12, bold),
                anchor="rm",
            )
    for index in range(len(shown)):
        left, top = layout.position(index, 0)
        lines = layout.headers[index // columns]
        if lines:
            _caption(pen, captions[index], left + cell[0] // 2, top - 4 - LINE * len(captions[index]))
        for row, (_, images) in enumerate(rows):
            picture.paste(_tile(images[index], enlarge, reduce), layout.position(index, row))
    if footer:
        pen.text((MARGIN + LEGEND, height + 2), footer, fill=theme.MUTED, font=theme.font(11), anchor="lt")
    picture.info["group_ends"] = tuple(layout.group_top(g) - GROUP_GAP for g in range(1, len(layout.headers) + 1))
    return picture


def wrapped(name: str, width: int) -> tuple[str, ...]:
    """Break a class name at a space, underscore or hyphen into at most two lines of `width` pixels, else with "…"."""
    font = theme.font(11)
    words = re.sub(r"[\s_]+", " ", name).strip().replace("-", "- ").split(" ")
    first = words.pop(0)
    while words and font.getlength(_joined(first, words[0])) <= width:
        first = _joined(first, words.pop(0))
    second = words.pop(0) if words else ""
    for word in words:
        second = _joined(second, word)
    return tuple(_shortened(line, width) for line in (first, second) if line) or ("?",)


def _joined(start: str, word: str) -> str:
    return start + word if start.endswith("-") else f"{start} {word}"


def _shortened(line: str, width: int) -> str:
    font = theme.font(11)
    if font.getlength(line) <= width + GAP // 2:
        return line
    while line and font.getlength(line + "…") > width:
        line = line[:-1]
    return line.rstrip(" ,;-") + "…"


def _header_lines(captions: Sequence[tuple[str, ...]], columns: int) -> tuple[int, ...]:
    groups = [captions[start : start + columns] for start in range(0, len(captions), columns)]
    return tuple(
        0 if number and group == groups[number - 1][: len(group)] else max(map(len, group))
        for number, group in enumerate(groups)
    )


def _caption(pen: ImageDraw.ImageDraw, lines: tuple[str, ...], centre: int, top: int) -> None:
    for number, line in enumerate(lines):
        pen.text((centre, top + number * LINE), line, fill=theme.INK, font=theme.font(11), anchor="ma")


def _tile(image: Tensor, enlarge: int, reduce: int) -> Image.Image:
    from PIL import Image

    from cudd_core.image_table import to_pillow

    tile = to_pillow(image)
    if reduce > 1:
        tile = tile.reduce(reduce)
    return tile.resize((tile.width * enlarge, tile.height * enlarge), Image.Resampling.NEAREST).convert("RGB")
