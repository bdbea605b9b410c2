"""The result in words and tables, one part of the page a function."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cudd_core.reporting import reading
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.markup import Html, element, joined, table
from cudd_core.reporting.reading import MISSING, Score, duration, percent, spread, stage_name

Summary = Mapping[str, Any]


def lead(summary: Summary) -> Html:
    """Say in one sentence what this page shows."""
    images, classes = summary["dataset"]["images"], summary["dataset"]["classes"]
    amount = f"{images:,} synthetic images ({images / classes:g} for each of {classes:,} classes)"
    if imported := summary.get("imported"):
        amount += (
            f", read from a folder ({imported['format']}) and not made by this run, of which the teacher takes "
            f"{imported['teacher_agreement']:.0%} for the class that they are labelled as,"
        )
    return element(
        "p",
        f"{amount} stand in for the whole training set. Below: how well networks do that are trained on nothing else, "
        "what the images look like, what they cost, and how to make them again.",
    )


def tiles(summary: Summary) -> Html:
    """Show the three figures that matter: teacher, distilled, margin over random real images in points."""
    measured = reading.scores(summary["accuracy"])
    arch, score = next(iter(measured["distilled"].items()))
    runs = f"{score.n} network{'s' if score.n > 1 else ''}"
    if "random" in measured:
        random = measured["random"][arch]
        margin = 100 * (score.mean - random.mean)
        text = f"{margin:+.1f}{_error(score, random)}".replace("-", "−")
        below = f"points; random real images: {spread(random, chr(0xA0) + '%')}"
        last = _tile("Margin over random", text, below, "main" if margin > 0 else "below")
    else:
        last = _tile("Margin over random", MISSING, "random real images were not evaluated in this run")
    return element(
        "dl",
        _tile("Teacher", percent(summary["accuracy"]["teacher"]), "trained on all data: the ceiling"),
        _tile("Distilled", spread(score, "\u00a0%"), f"{arch}, {runs}", "main"),
        last,
        class_="tiles",
    )


def _error(one: Score, other: Score) -> str:
    """Return ± the standard error of the difference of two means, or nothing unless both have a spread."""
    if not (one.std and other.std):
        return ""
    return f"\u00a0±\u00a0{100 * math.sqrt(one.std**2 / one.n + other.std**2 / other.n):.1f}"


def _tile(name: str, figure: str, below: str, kind: str = "") -> Html:
    content = element("dd", element("span", figure, class_="figure"), element("small", below))
    return element("div", element("dt", name), content, class_=f"tile {kind}".strip())


def accuracy_table(summary: Summary) -> Html:
    """Show the scores of methods × architectures, and the teacher's below."""
    measured = reading.scores(summary["accuracy"])
    colours = method_colours(measured)
    rows = []
    for method, by_architecture in measured.items():
        name = joined(
            [
                element("span", class_="swatch", style=f"background:{colours[method]}"),
                reading.method_name(method),
                element("small", reading.METHODS[method][1], class_="below"),
            ]
        )
        rows.append([name, *(joined([spread(s), element("small", f"n = {s.n}")]) for s in by_architecture.values())])
    teacher = f"Teacher, trained on all data: {percent(summary['accuracy']['teacher'])}."
    return joined([table(["method", *measured["distilled"]], rows), element("p", teacher, class_="note")])


def curricula(summary: Summary) -> Html | None:
    """Show one row per curriculum: what was selected, its student's accuracy, the time of each stage; of a set from a
    folder, nothing.
    """
    if summary.get("imported"):
        return None
    rounds = summary["curricula"]
    used = {name for one in rounds for name, taken in one["tiers"].items() if taken}
    tiers = [name for name in reading.TIERS if name in used]
    timed = {stage for one in rounds for stage in one["seconds"]}
    stages = [*(s for s in reading.CURRICULUM_STAGES if s in timed), *sorted(timed - set(reading.CURRICULUM_STAGES))]
    heads = ["curriculum", "images per class", *(reading.TIERS[name][0] for name in tiers), "student accuracy"]
    rows = [
        [
            f"{one['index']:,}",
            f"{one['ipc']:,}",
            *(f"{one['tiers'].get(name, 0):,}" for name in tiers),
            percent(one["student_accuracy"]),
        ]
        for one in rounds
    ]
    times = [[f"{one['index']:,}", *(duration(one["seconds"].get(stage)) for stage in stages)] for one in rounds]
    legend = "; ".join(f"“{reading.TIERS[name][0]}”: {reading.TIERS[name][1]}" for name in tiers)
    return element(
        "section",
        element("h2", "Curricula"),
        element(
            "p",
            "The set grows in rounds. Each round starts from real images that the teacher gets right and, from the "
            "second on, the student of the round before gets wrong, and makes synthetic ones of them. The last "
            "round's student is trained only when asked for.",
            class_="note",
        ),
        table(heads, rows),
        element("p", f"Counts are images by why they were selected – {legend}.", class_="note"),
        element("h3", "Time by stage"),
        table(["curriculum", *map(stage_name, stages)], times),
    )
