"""Sets of images among their originals: one panel per set, all in the coordinates of a single t-SNE (Fig. 9)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cudd_core.reporting import theme
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.reading import method_name

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

PANEL = 2.6
"""Width and height of a panel, in inches."""


def embedding_figure(
    originals: NDArray[np.float32], sets: Mapping[str, NDArray[np.float32]], captions: Mapping[str, str], title: str
) -> Image.Image:
    """Draw `originals` [n, 2] in grey under each of `sets` [m, 2], with the set's caption below its name."""
    width, height = max(3.0, 0.15 + (PANEL + 0.15) * len(sets)), PANEL + 0.95
    figure = theme.new_figure(width, height, title)
    colours = method_colours(sets)
    everything = np.concatenate([originals, *sets.values()])
    middle, half = (everything.max(0) + everything.min(0)) / 2, 0.53 * np.ptp(everything, axis=0).max()
    for place, (name, points) in enumerate(sets.items()):
        left = 0.15 + (PANEL + 0.15) * place
        axes = figure.add_axes((left / width, 0.1 / height, PANEL / width, PANEL / height))
        axes.set(xticks=[], yticks=[])
        axes.set_xlim(middle[0] - half, middle[0] + half)
        axes.set_ylim(middle[1] - half, middle[1] + half)
        for spine in axes.spines.values():
            spine.set_color(theme.RULE)
        axes.scatter(originals[:, 0], originals[:, 1], s=4, color=theme.MUTED, alpha=0.35, linewidths=0)
        axes.scatter(points[:, 0], points[:, 1], s=16, color=colours[name], edgecolors="white", linewidths=0.4)
        axes.set_title(f"{method_name(name)}\n{captions[name]}", fontsize=8, color=theme.INK, loc="left",
                       parse_math=False)  # fmt: skip
    return theme.rendered(figure)
