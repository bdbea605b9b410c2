"""The table of accuracies by class, and how a page shows it."""

from __future__ import annotations

import csv
import io
import math
import random

from cudd_core.reporting.classes import SHOWN, class_table, section


def test_the_file_has_every_class_that_has_test_images() -> None:
    shares = {"distilled a": [0.25, math.nan, 1.0], "teacher": [0.5, math.nan, 1.0]}
    made = class_table(("cat", "ghost", "dog, wet"), [4, 0, 2], shares)
    rows = list(csv.reader(io.StringIO(made.csv())))
    assert rows == [
        ["class", "test_images", "distilled a", "teacher"],
        ["cat", "4", "0.25", "0.5"],
        ["dog, wet", "2", "1.0", "1.0"],
    ]


def test_a_page_shows_every_class_and_below_the_mean_over_classes() -> None:
    made = class_table(("cat", "<b>"), [300, 100], {"distilled a": [0.9, 0.5]})
    page = section(made)
    assert '<td>cat</td><td class="number">300</td><td class="number">90.0</td>' in page
    assert "&lt;b&gt;" in page and "<b>" not in page
    assert 'mean over 2 classes</td><td class="number"></td><td class="number">70.0</td>' in page


def test_of_many_classes_a_page_shows_the_hardest_and_the_mean_over_all() -> None:
    classes = 3 * SHOWN
    shares = [k / classes for k in random.Random(5).sample(range(classes), classes)]
    names = [f"class {k:03}" for k in range(classes)]
    made = class_table(names, [50] * classes, {"distilled a": shares, "teacher": [1.0] * classes})
    page = section(made)
    shown = {name for name in names if name in page}
    assert shown == {name for name, share in zip(names, shares, strict=True) if share < SHOWN / classes}
    assert f"mean over {classes} classes" in page and f"{100 * sum(shares) / classes:.1f}" in page
    assert len(made.rows) == classes
