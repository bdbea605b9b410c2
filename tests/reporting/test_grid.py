"""The preview grid: every pixel where it belongs, and unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cudd_core.reporting import theme
from cudd_core.reporting.grid import LEGEND, MARGIN, GridLayout, cell_factor, preview_grid, wrapped

NAMES = tuple(f"class {k}" for k in range(10))


def images(n: int, channels: int, side: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(
    ("side", "factors"),
    [(8, (8, 1)), (16, (4, 1)), (28, (3, 1)), (32, (2, 1)), (64, (1, 1)), (128, (1, 1)), (224, (1, 2)), (256, (1, 2))],
)
def test_cells_are_legible_and_bounded(side: int, factors: tuple[int, int]) -> None:
    assert cell_factor(side, side) == factors
    enlarge, reduce = factors
    assert 48 <= side * enlarge // reduce <= 128


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 28, 32])
def test_every_pixel_is_copied_unchanged(channels: int, side: int) -> None:
    originals, synthetic = images(20, channels, side, 0), images(20, channels, side, 1)
    labels = [*range(10), *range(10)]

    picture = preview_grid(originals, synthetic, NAMES, labels)

    factor = cell_factor(side, side)[0]
    layout = GridLayout(10, 2, (side * factor, side * factor), headers=(1, 0))
    assert picture.mode == "RGB"
    assert picture.size == layout.size
    pixels = np.asarray(picture)
    for index in range(20):
        for row, source in enumerate((originals, synthetic)):
            left, top = layout.position(index, row)
            cell = pixels[top : top + side * factor, left : left + side * factor]
            expected = source[index].permute(1, 2, 0).numpy().repeat(factor, 0).repeat(factor, 1)
            assert np.array_equal(cell, np.broadcast_to(expected, cell.shape))


def test_size_in_numbers() -> None:
    picture = preview_grid(images(3, 1, 8, 0), images(3, 1, 8, 1), NAMES, [0, 1, 2])
    assert picture.size == (2 * MARGIN + LEGEND + 3 * 64 + 2 * 4, 2 * MARGIN + (13 + 4) + 2 * 64 + 4)


def test_without_originals_there_is_one_row() -> None:
    both = preview_grid(images(4, 3, 32, 0), images(4, 3, 32, 1), NAMES, torch.arange(4))
    alone = preview_grid(None, images(4, 3, 32, 1), NAMES, torch.arange(4))
    assert alone.width == both.width
    assert alone.height == both.height - 64 - 4


def test_groups_end_where_the_picture_may_be_cut() -> None:
    picture = preview_grid(images(20, 3, 32, 0), images(20, 3, 32, 1), NAMES, [*range(10), *range(10)])
    first, last = picture.info["group_ends"]
    assert last + MARGIN == picture.height
    assert np.asarray(picture)[first : first + 18].min() == 255


def test_large_images_are_averaged() -> None:
    flat = torch.full((1, 3, 224, 224), 77, dtype=torch.uint8)
    picture = preview_grid(None, flat, NAMES, [0])
    assert picture.getpixel((MARGIN + LEGEND + 50, picture.height - MARGIN - 50)) == (77, 77, 77)
    assert picture.width == 2 * MARGIN + LEGEND + 112


def test_left_out_images_are_said() -> None:
    everything = preview_grid(None, images(50, 1, 8, 0), NAMES, [*range(10)] * 5)
    some = preview_grid(None, images(60, 1, 8, 0), NAMES, [*range(10)] * 6)
    assert some.height > everything.height


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("automobile", ("automobile",)),
        ("aquarium_fish", ("aquarium", "fish")),
        ("line\nbreak", ("line break",)),
        ("", ("?",)),
    ],
)
def test_names_fit_their_column(name: str, lines: tuple[str, ...]) -> None:
    assert wrapped(name, 64) == lines


def test_long_names_are_shortened() -> None:
    (line,) = wrapped("x" * 80, 64)
    assert line.endswith("…")
    assert len(line) < 15


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        preview_grid(None, torch.zeros(2, 3, 8, 8), NAMES, [0, 1])
    with pytest.raises(ValueError, match="differ in shape"):
        preview_grid(images(3, 3, 8, 0), images(2, 3, 8, 0), NAMES, [0, 1])
    with pytest.raises(ValueError, match="2 images, 1 labels"):
        preview_grid(None, images(2, 3, 8, 0), NAMES, [0])


def test_names_that_the_font_cannot_show_are_numbers() -> None:
    assert theme.can_show("naïve ✓") and not theme.can_show("cat 猫")
    numbered, named = (preview_grid(None, images(2, 3, 16, 0), names, [0, 1]) for names in (("0", "1"), ("猫", "犬")))
    assert numbered.tobytes() == named.tobytes()
