"""A comparison as Markdown, CSV and HTML: the table of results, how they were made, and what they cost."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cudd_core.comparison import DISTILLED, OWN, Cell, Line
from cudd_core.reporting.markup import element, table
from cudd_core.reporting.page import document, picture
from cudd_core.reporting.reading import MISSING, duration, method_name, percent, size
from cudd_core.reporting.tables import Table, mean_and_spread
from cudd_core.significance import LEAST_FOR_P, Difference, RankAgreement

_NOTES = (
    "Accuracies are those of the last epoch on the test data, in per cent; mean ± sample standard deviation over n.",
    "n counts networks of one distillation, which differ in their initial weights; where distillation was repeated "
    "with other seeds, it counts distillations, and each value is the mean over its networks.",
    "Margin: points above as many random real images under the same teacher, labels, epochs and steps, ± its standard "
    "error. Difference: points above the distilled set of the reference variant. p: two-sided, Welch's t-test, not "
    "corrected for the number of lines.",
    "Seconds are work on devices to make the set; its teacher, labels and evaluation are not in them.",
)

_ORDER_NOTE = (
    "τ: Kendall's τ_b between the mean accuracies of the architectures on the set and those on all of the data. 1: the "
    "same order; −1: the reverse. With few architectures it is coarse: with three and no ties it is ±1 or ±⅓, and by "
    f"chance alone 1 one time in six. p: two-sided, exact; none below {LEAST_FOR_P} architectures, or with ties."
)


@dataclass(frozen=True)
class Made:
    """One variant's distillations.

    `students`: curriculum → test accuracy of its student, in the first distillation. `seconds`: method → stage →
    seconds.
    """

    recipe: str
    variant: str
    boundaries: tuple[int, ...]
    seeds: tuple[int, ...]
    digests: tuple[str, ...]
    runs: tuple[str, ...]
    students: Mapping[int, float] = field(default_factory=dict)
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """Everything that is reported about a comparison.

    `failures`: (recipe, variant, reason) of variants without results. `question`: what the comparison is meant to show.
    """

    title: str
    command: str
    lines: tuple[Line, ...]
    made: tuple[Made, ...]
    failures: tuple[tuple[str, str, str], ...] = ()
    device: str = ""
    question: str = ""


def notes(report: Report) -> tuple[str, ...]:
    """Return notes that explain a report's tables, each a sentence or two."""
    return (*filter(None, [report.question]), *_NOTES)


_TEXTS = frozenset({"recipe", "variant", "set", "network", "protocol"})


def shown_variant(cell: Cell, variants: int) -> str:
    """Return the variants that a line stands for; a baseline shared by all of a recipe's variants belongs to none."""
    if len(cell.shared) > 1 and len(cell.shared) == variants:
        return MISSING
    return "; ".join(cell.shared)


def results_table(report: Report) -> Table:
    """Return the table of results; columns without any entry are left out."""
    lines = report.lines
    variants = Counter(one.recipe for one in report.made)
    columns: dict[str, Callable[[Line], str]] = {
        "recipe": lambda line: line.cell.recipe,
        "variant": lambda line: shown_variant(line.cell, variants[line.cell.recipe]),
        "set": lambda line: method_name(line.cell.method),
        "network": lambda line: line.cell.arch,
        "protocol": lambda line: line.cell.protocol,
        "IPC": lambda line: str(line.cell.ipc),
        "accuracy": lambda line: mean_and_spread(line.cell.mean, line.cell.std, digits=2),
        "n": lambda line: str(len(line.cell.values)),
        "networks": lambda line: str(line.cell.networks),
        "margin": lambda line: _difference(line.margin),
        "p (margin)": lambda line: _p(line.margin),
        "difference": lambda line: _difference(line.against),
        "p (difference)": lambda line: _p(line.against),
        "teacher": lambda line: percent(line.cell.teacher),
        "full data": lambda line: percent(line.cell.full_data),
        "LRS": lambda line: _score(line.lrs),
        "ARS": lambda line: _score(line.ars),
        "images": lambda line: size(line.cell.image_bytes),
        "labels": lambda line: size(line.cell.label_bytes),
        "seconds": lambda line: duration(line.cell.seconds),
    }
    told = {name: [text(line) for line in lines] for name, text in columns.items()}
    # Columns that say the same of every line, or nothing of any, are left out.
    if all(line.cell.protocol == OWN for line in lines):
        del told["protocol"]
    if told["networks"] == told["n"]:
        del told["networks"]
    if len(set(told["variant"])) == 1:
        del told["variant"]
    kept = {name: texts for name, texts in told.items() if any(text != MISSING for text in texts)}
    return Table.of(list(kept), zip(*kept.values(), strict=True), sum(name in _TEXTS for name in kept))


def order_table(report: Report) -> Table:
    """Return how sets order architectures compared with all of the data, one row per set and protocol."""
    variants = Counter(one.recipe for one in report.made)
    rows = [
        (
            *(line.cell.recipe, shown_variant(line.cell, variants[line.cell.recipe]), method_name(line.cell.method)),
            *(line.cell.protocol, line.ranks.n, _score(line.ranks.tau, "+.2f"), _p(line.ranks)),
        )
        for line in report.lines
        if line.ranks is not None
    ]
    return Table.of(["recipe", "variant", "set", "protocol", "architectures", "τ", "p"], dict.fromkeys(rows), 4)


def variants_table(report: Report) -> Table:
    """Return the table of variants."""
    heads = ["recipe", "variant", "curricula", "students", "seeds", "digests", "MLflow runs"]
    rows = [
        [
            *(one.recipe, one.variant, " → ".join(map(str, one.boundaries))),
            ", ".join(f"{j}: {percent(accuracy)}" for j, accuracy in one.students.items()) or MISSING,
            ", ".join(map(str, one.seeds)),
            ", ".join(digest[:16] for digest in one.digests),
            ", ".join(one.runs),
        ]
        for one in report.made
    ]
    return Table.of(heads, rows, len(heads))


def cost_table(report: Report) -> Table:
    """Return the table of seconds by stage; a method that several variants share is listed once."""
    rows, seen = list[list[str]](), set[object]()
    stages = list(dict.fromkeys(stage for one in report.made for by in one.seconds.values() for stage in by))
    for one in report.made:
        for method, seconds in one.seconds.items():
            told = (one.recipe, method, tuple(seconds.items()))
            if method == DISTILLED or told not in seen:
                texts = [duration(seconds.get(stage)) for stage in stages]
                rows.append([one.recipe, one.variant, method_name(method), *texts])
            seen.add(told)
    return Table.of(["recipe", "variant", "set", *stages], rows, 3)


def markdown(report: Report) -> str:
    """Return the report as Markdown (GitHub's tables)."""
    parts = [f"# {report.title}", f"    {report.command}"]
    parts += ["\n".join(f"- {note}" for note in notes(report))]
    for heading, note, content in _tables(report):
        parts += [f"## {heading}", *filter(None, [note]), content.markdown().rstrip()]
    if report.device:
        parts.append(f"Device: {report.device}.")
    return "\n\n".join(parts) + "\n"


def _tables(report: Report) -> list[tuple[str, str, Table]]:
    """Return heading, note and table of each section, leaving out empty tables."""
    tables = [
        ("Results", "", results_table(report)),
        ("Without results", "", Table.of(["recipe", "variant", "why"], report.failures, 3)),
        ("Order of the architectures", _ORDER_NOTE, order_table(report)),
        ("Variants", "", variants_table(report)),
        ("Seconds of work by stage", "", cost_table(report)),
    ]
    return [each for each in tables if each[2].rows]


def plain_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Return each line in machine-readable form: fractions, bytes and seconds, None where nothing was measured."""
    return [
        {
            **{name: getattr(line.cell, name) for name in ("recipe", "variant", "method", "arch", "protocol", "ipc")},
            "shared_by": list(line.cell.shared),
            "n": len(line.cell.values),
            "networks": line.cell.networks,
            "mean": line.cell.mean,
            "std": line.cell.std,
            "values": list(line.cell.values),
            **_numbers("margin", line.margin),
            **_numbers("difference", line.against),
            **{name: getattr(line.cell, name) for name in ("teacher", "full_data")},
            "lrs": line.lrs,
            "ars": line.ars,
            "tau": line.ranks.tau if line.ranks else None,
            "tau_archs": line.ranks.n if line.ranks else None,
            "tau_p": line.ranks.p if line.ranks else None,
            **{name: getattr(line.cell, name) for name in ("image_bytes", "label_bytes", "seconds")},
        }
        for line in lines
    ]


def _numbers(name: str, difference: Difference | None) -> dict[str, float | None]:
    fields = ("mean", "error", "p")
    return {
        (name if one == "mean" else f"{name}_{one}"): getattr(difference, one) if difference else None for one in fields
    }


def comma_separated(lines: Sequence[Line]) -> str:
    """Return `plain_rows` as CSV; lists are joined by semicolons, None becomes an empty field."""
    rows = plain_rows(lines)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["recipe"], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: ";".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()})
    return text.getvalue()


def page(report: Report, pictures: Mapping[str, bytes]) -> str:
    """Return the report as one self-contained HTML file. `pictures`: caption → PNG file."""
    sections = [
        element(
            "section",
            element("h2", heading),
            element("p", note, class_="note") if note else None,
            table(content.columns, content.rows, text_columns=content.texts),
        )
        for heading, note, content in _tables(report)
    ]
    drawn = [
        element("figure", picture(png, caption), element("figcaption", caption)) for caption, png in pictures.items()
    ]
    figures = [element("section", element("h2", "Pictures"), *drawn)] if drawn else []
    known = element("ul", *(element("li", note) for note in notes(report)), class_="note")
    body = element(
        "main",
        element("p", "Dataset distillation, compared", class_="eyebrow"),
        element("h1", report.title),
        element("pre", report.command),
        known,
        *sections[:1],
        *figures,
        *sections[1:],
        element("p", f"Device: {report.device}.", class_="note") if report.device else None,
    )
    return document(f"{report.title} · comparison", body)


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return MISSING
    error = "" if difference.error is None else f" ± {100 * difference.error:.2f}"
    return f"{100 * difference.mean:+.2f}{error}".replace("-", "−")


def _p(found: Difference | RankAgreement | None) -> str:
    if found is None or found.p is None:
        return MISSING
    return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _score(value: float | None, form: str = ".3f") -> str:
    return MISSING if value is None else f"{value:{form}}".replace("-", "−")
