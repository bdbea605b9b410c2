"""The figure of sets among their originals."""

from __future__ import annotations

import numpy as np

from cudd_core.reporting import theme
from cudd_core.reporting.embedding import PANEL, embedding_figure


def test_originals_lie_in_the_same_places_of_every_panel() -> None:
    originals = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    far = {"one": np.float32([[-9, 0]]), "other": np.float32([[0, 12], [1, 1]])}
    picture = np.asarray(embedding_figure(originals, far, dict.fromkeys(far, ""), "x" * 200)).astype(int)
    scale = 96 * theme.SCALE
    places = []
    for left in (0.15, 0.30 + PANEL):
        panel = picture[-round((0.1 + PANEL) * scale) :, round(left * scale) :][4:-30, 4 : round(PANEL * scale) - 4]
        grey = (np.ptp(panel, axis=2) < 30) & (panel.mean(2) < 200)
        rows, columns = grey.nonzero()
        places.append((rows.min(), rows.max(), columns.min(), columns.max()))
    assert np.abs(np.subtract(*places)).max() <= 2 and places[0][1] - places[0][0] > 50


def test_a_title_fits_its_figure() -> None:
    for width in (3.0, 9.0):
        figure = theme.new_figure(width, 1, "a title of many words, " * 5)
        assert figure.texts[0].get_window_extent().x1 <= figure.bbox.x1
    assert theme.new_figure(9, 1, "short").texts[0].get_fontsize() == 10
