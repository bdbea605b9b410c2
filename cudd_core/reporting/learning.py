"""Accuracy on all classes seen so far, step by step (Fig. 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cudd_core.reporting import theme
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.reading import method_name

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image


def learning_figure(measured: Mapping[str, NDArray[np.float64]], classes: Sequence[int], title: str) -> Image.Image:
    """Draw each method's accuracies [orders, steps] over the number of classes seen: mean and standard deviation."""
    width, height = 5.2, 3.6
    figure = theme.new_figure(width, height, title)
    axes = figure.add_axes((0.55 / width, 0.5 / height, (width - 0.75) / width, (height - 1.05) / height))
    theme.quiet_axes(axes)
    colours = method_colours(measured)
    for method, values in measured.items():
        spread = 100 * values.std(axis=0, ddof=1) if len(values) > 1 else None
        axes.errorbar(classes, 100 * values.mean(axis=0), yerr=spread, color=colours[method], linewidth=1.5, capsize=3,
                      marker="o", markersize=4, label=method_name(method))  # fmt: skip
    axes.set_xticks(list(classes))
    axes.set_xlabel("classes seen", fontsize=9, color=theme.MUTED)
    axes.set_title("test accuracy on them, %", fontsize=8.5, color=theme.INK, loc="left")
    axes.legend(fontsize=8, frameon=False, labelcolor=theme.INK)
    return theme.rendered(figure)
