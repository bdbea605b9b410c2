from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageColor

from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.robustness import robustness_figure


@pytest.mark.parametrize("severities", [(3,), (1, 3, 5)])
def test_every_corruption_has_a_dot_of_every_method(severities: tuple[int, ...]) -> None:
    """Of one severity nothing is drawn over severities, and clean images have a row of their own."""
    generator, names = np.random.default_rng(0), [f"corruption_{i}" for i in range(6)]
    measured = {
        method: (generator.uniform(0.7, 0.8, 3), generator.uniform(low, low + 0.05, (3, 6, len(severities))))
        for method, low in (("distilled", 0.6), ("random", 0.4))
    }
    figure = robustness_figure(measured, names, severities, "a title")
    wider = robustness_figure(measured, names, (1, 2, 3), "a title") if len(severities) == 3 else figure
    assert figure.size == wider.size and (figure.width > 1500) == (len(severities) > 1)
    for method, colour in method_colours(measured).items():
        pixels = np.asarray(figure) == np.asarray(ImageColor.getrgb(colour))
        left = int((0.625 if len(severities) > 1 else 0.34) * figure.width)  # of the rows of dots
        rows = pixels.all(2)[: int(0.85 * figure.height), left:].any(1)  # without a legend below
        assert np.diff(rows.astype(int)).clip(0).sum() == len(names) + (len(severities) == 1), method
