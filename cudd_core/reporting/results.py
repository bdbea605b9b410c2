"""The result in words and tables. Each function returns one part, or None if the summary has nothing for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cudd_core.reporting import reading
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.markup import Html, element, joined, table
from cudd_core.reporting.reading import MISSING, Score, count, duration, mapping, number, percent, spread, stage_name

Summary = Mapping[str, Any]


def lead(summary: Summary) -> Html:
    """Say in one sentence what this page shows."""
    dataset = mapping(summary.get("dataset"))
    images, classes = number(dataset.get("images")), number(dataset.get("classes"))
    amount = "Synthetic images" if images is None else f"{images:,.0f} synthetic images"
    if images and classes:
        amount += f" ({images / classes:g} for each of {classes:,.0f} classes)"
    if imported := mapping(summary.get("imported")):
        amount += f", read from a folder ({imported.get('format', 'of unknown format')}) and not made by this run,"
        if (agreement := number(imported.get("teacher_agreement"))) is not None:
            amount += f" of which the teacher takes {agreement:.0%} for the class that they are labelled as,"
    return element(
        "p",
        f"{amount} stand in for the whole training set. Below: how well networks do that are trained on nothing else, "
        "what the images look like, what they cost, and how to make them again.",
    )


def own_result(summary: Summary) -> tuple[str, Score, Score | None] | None:
    """Return the run's own architecture, the distilled score on it, and the score of random real images there."""
    measured = reading.scores(summary)
    if "distilled" not in measured:
        return None
    arch, score = next(iter(measured["distilled"].items()))
    return arch, score, measured.get("random", {}).get(arch)


def tiles(summary: Summary) -> Html | None:
    """Show the three figures that matter: teacher, distilled, margin over random real images in points."""
    teacher, own = reading.teacher(summary), own_result(summary)
    shown = []
    if teacher is not None:
        shown.append(_tile("Teacher", percent(teacher), "trained on all data: the ceiling"))
    if own is not None:
        arch, score, random = own
        runs = "" if score.n is None else f", {score.n} network{'s' if score.n > 1 else ''}"
        shown.append(_tile("Distilled", spread(score, "\u00a0%"), f"{arch}{runs}", "main"))
        if random is None:
            shown.append(_tile("Margin over random", MISSING, "random real images were not evaluated in this run"))
        else:
            margin = 100 * (score.mean - random.mean)
            text = f"{margin:+.1f}{_error(score, random)}".replace("-", "−")
            below = f"points; random real images: {spread(random, chr(0xA0) + '%')}"
            shown.append(_tile("Margin over random", text, below, "main" if margin > 0 else "below"))
    return element("dl", *shown, class_="tiles") if shown else None


def _error(one: Score, other: Score) -> str:
    """Return ± the standard error of the difference of two means, or nothing unless both have a spread."""
    if not (one.n and other.n and one.std and other.std and min(one.n, other.n) > 1):
        return ""
    return f"\u00a0±\u00a0{100 * math.sqrt(one.std**2 / one.n + other.std**2 / other.n):.1f}"


def _tile(name: str, figure: str, below: str, kind: str = "") -> Html:
    content = element("dd", element("span", figure, class_="figure"), element("small", below))
    return element("div", element("dt", name), content, class_=f"tile {kind}".strip())


def accuracy_table(summary: Summary) -> Html | None:
    """Show the scores of methods × architectures, and the teacher's below."""
    measured, teacher = reading.scores(summary), reading.teacher(summary)
    if not measured:
        return None
    architectures = reading.architectures(measured)
    colours = method_colours(measured)
    rows = []
    for method, by_architecture in measured.items():
        name = joined(
            [
                element("span", class_="swatch", style=f"background:{colours[method]}"),
                reading.method_name(method),
                element("small", reading.METHODS[method][1], class_="below") if method in reading.METHODS else None,
            ]
        )
        rows.append([name, *(_score(by_architecture.get(arch)) for arch in architectures)])
    below = (
        None if teacher is None else element("p", f"Teacher, trained on all data: {percent(teacher)}.", class_="note")
    )
    return joined([table(["method", *architectures], rows), below])


def _score(score: Score | None) -> Html:
    count = None if score is None or score.n is None else element("small", f"n = {score.n}")
    return joined([spread(score), count])


def curricula(summary: Summary) -> Html | None:
    """Show one row per curriculum: what was selected, its student's accuracy, the time of each stage."""
    rounds = [mapping(entry) for entry in summary.get("curricula") or ()]
    if not rounds or summary.get("imported"):
        return None
    used = {name for one in rounds for name, taken in mapping(one.get("tiers")).items() if taken}
    tiers = [name for name in reading.TIERS if name in used]
    timed = {stage for one in rounds for stage in mapping(one.get("seconds"))}
    stages = [*(s for s in reading.CURRICULUM_STAGES if s in timed), *sorted(timed - set(reading.CURRICULUM_STAGES))]
    heads = ["curriculum", "images per class", *(reading.TIERS[name][0] for name in tiers), "student accuracy"]
    rows = [
        [
            count(one.get("index")),
            count(one.get("ipc")),
            *(count(mapping(one.get("tiers")).get(name, 0)) for name in tiers),
            percent(number(one.get("student_accuracy"))),
        ]
        for one in rounds
    ]
    times = [
        [count(one.get("index")), *(duration(number(mapping(one.get("seconds")).get(s))) for s in stages)]
        for one in rounds
    ]
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
        element("p", f"Counts are images by why they were selected – {legend}.", class_="note") if tiers else None,
        joined([element("h3", "Time by stage"), table(["curriculum", *map(stage_name, stages)], times)])
        if stages
        else None,
    )
