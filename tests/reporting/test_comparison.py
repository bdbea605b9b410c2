"""A comparison's files: complete, escaped, read back by their own readers."""

from __future__ import annotations

import csv
import dataclasses
import io
from html.parser import HTMLParser

import pytest
from PIL import ImageColor

from cudd_core.comparison import DISTILLED, HARD, OWN, RANDOM, Cell, tabulate
from cudd_core.reporting import comparison as reporting
from cudd_core.reporting.accuracy import method_colours
from cudd_core.reporting.comparison import Made, Report
from cudd_core.reporting.comparison_figure import LONGEST, _labels, cost_figure, margins_figure
from cudd_core.reporting.theme import png_bytes
from cudd_core.significance import Difference

HOSTILE = '"><script>alert(1)</script> | $\\frac{'


def cell(method: str, *values: float, variant: str = "adv", protocol: str = OWN, identity: str = "") -> Cell:
    return Cell(
        *("r", variant, method, "convnet3", protocol, 10, values, len(values)),
        teacher=0.8205,
        full_data=0.8205,
        image_bytes=2048,
        label_bytes=4096,
        seconds=None,
        identity=(identity or f"{method} {variant} {protocol}",),
    )


def report(*cells: Cell, variants: tuple[str, ...] = ("adv",), failures: bool = False) -> Report:
    made = tuple(
        Made(
            "r", name, (5, 10), (0,), ("f" * 64,), ("run",), {1: 0.4}, {DISTILLED: {"synthesize": 61.0, "labels": 2.0}}
        )
        for name in variants
    )
    references = {("r", name): ("r", variants[0]) for name in variants}
    why = (("r", "broken", f"it failed: {HOSTILE}"),) if failures else ()
    return Report("r", "cudd compare r", tabulate(cells, references), made, why, "a CPU")


FULL = report(
    cell(DISTILLED, 0.70, 0.72),
    cell(RANDOM, 0.60, 0.62, identity="shared"),
    cell(DISTILLED, 0.50, 0.53, variant=HOSTILE),
    cell(RANDOM, 0.60, 0.62, variant=HOSTILE, identity="shared"),
    variants=("adv", HOSTILE),
    failures=True,
)


def test_table_says_what_was_measured() -> None:
    rows = reporting.results_table(FULL).records()
    first = rows[0]
    assert first["accuracy"] == "71.00 ± 1.41" and first["n"] == "2"
    assert first["margin"] == "+10.00 ± 1.41" and str(first["teacher"]).startswith("82.")
    assert [row["variant"] for row in rows] == ["adv", "–", HOSTILE]
    assert str(rows[2]["margin"]).startswith("−9.50")


def test_a_line_names_the_variants_that_it_stands_for_unless_it_stands_for_all() -> None:
    cells = [cell(DISTILLED, 0.7, variant=name) for name in "abc"]
    cells += [cell(RANDOM, 0.6, variant=name, identity="shared") for name in "abc"]
    cells += [cell("herding", 0.6, variant=name, identity=f"herding {name == 'c'}") for name in "abc"]
    rows = reporting.results_table(report(*cells, variants=("a", "b", "c"))).records()
    assert [row["variant"] for row in rows] == ["a", "b", "c", "–", "a; b", "c"]
    one = report(cell(DISTILLED, 0.7), cell(RANDOM, 0.6))
    assert [reporting.shown_variant(line.cell, 1) for line in one.lines] == ["adv", "adv"]


def test_variants_are_listed_with_what_their_students_reached() -> None:
    made = (
        Made("r", "a", (5, 10), (0, 1), ("f" * 64, "e" * 64), ("one", "two"), {1: 0.4, 2: 0.512}),
        Made("r", "b", (10,), (0,), ("d" * 64,), ("three",)),
    )
    rows = reporting.variants_table(Report("r", "", (), made)).records()
    assert [row["students"] for row in rows] == ["1: 40.0\u00a0%, 2: 51.2\u00a0%", "–"]
    assert [row["curricula"] for row in rows] == ["5 → 10", "10"]
    assert (rows[0]["seeds"], rows[0]["MLflow runs"]) == ("0, 1", "one, two")
    for digest, shown in zip(made[0].digests, str(rows[0]["digests"]).split(", "), strict=True):
        assert digest.startswith(shown) and len(shown) >= 12


def test_columns_that_say_nothing_are_left_out() -> None:
    heads = reporting.results_table(report(cell(DISTILLED, 0.70))).columns
    assert not {"variant", "protocol", "networks", "margin", "p (margin)", "difference", "LRS", "seconds"} & set(heads)
    heads = reporting.results_table(report(cell(DISTILLED, 0.70), cell(DISTILLED, 0.3, protocol=HARD))).columns
    assert "protocol" in heads


def test_markdown_has_as_many_cells_in_every_line() -> None:
    text = reporting.markdown(FULL)
    for block in text.split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") - line.count(r"\|") for line in lines}) == 1
    assert "## Without results" in text and "broken" in text
    assert text.endswith("\n\nDevice: a CPU.\n")
    assert "cudd compare r" in text and all(note in text for note in reporting.notes(FULL))


@pytest.mark.parametrize(("p", "shown"), [(None, "–"), (0.0009, "< 0.001"), (0.001, "0.001"), (0.0456, "0.046")])
def test_a_p_is_told_to_three_places_and_never_as_none_at_all(p: float | None, shown: str) -> None:
    assert reporting._p(Difference(0.1, 0.01, p)) == shown


def test_a_comparison_without_any_result_still_says_why() -> None:
    empty = report(variants=(), failures=True)
    assert "## Without results" in reporting.markdown(empty) and "## Results" not in reporting.markdown(empty)
    assert "it failed" in reporting.page(empty, {})
    assert list(csv.DictReader(io.StringIO(reporting.comma_separated(empty.lines)))) == []
    assert reporting.results_table(empty).records() == reporting.plain_rows(empty.lines) == []
    assert cost_figure(empty.made) is None


def test_csv_reads_back_as_numbers() -> None:
    rows = list(csv.DictReader(io.StringIO(reporting.comma_separated(FULL.lines))))
    assert [row["method"] for row in rows] == [DISTILLED, RANDOM, DISTILLED]
    assert float(rows[0]["mean"]) == pytest.approx(0.71) and rows[0]["values"] == "0.7;0.72"
    assert float(rows[0]["margin"]) == pytest.approx(0.1) and rows[1]["margin"] == ""
    assert rows[2]["variant"] == HOSTILE and rows[1]["shared_by"] == f"adv;{HOSTILE}"
    assert float(rows[2]["difference_p"]) < 0.1


def test_page_is_escaped_and_holds_the_tables() -> None:
    class Reader(HTMLParser):
        scripts, tables = 0, 0

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.scripts += tag == "script"
            self.tables += tag == "table"

    reader = Reader()
    page = reporting.page(FULL, {"margins": png_bytes(margins_figure(FULL))})
    reader.feed(page)
    assert reader.scripts == 0 and reader.tables == 4
    assert "Device: a CPU." in page and ">Pictures<" in page and page.count("<img") == 1
    assert ">Pictures<" not in reporting.page(FULL, {})


def test_every_set_has_a_row_for_its_order_of_architectures() -> None:
    cells = [
        dataclasses.replace(cell(method, mean, variant=variant, identity=identity), arch=arch, full_data=full)
        for variant in ("adv", HOSTILE)
        for method, identity, means in ((DISTILLED, variant, (0.5, 0.4, 0.6)), (RANDOM, "shared", (0.3, 0.2, 0.1)))
        for arch, full, mean in zip("abc", (0.7, 0.8, 0.9), means, strict=True)
    ]
    made = report(*cells, variants=("adv", HOSTILE))
    table = reporting.order_table(made)
    assert table.rows == (
        ("r", "adv", "Distilled", OWN, 3, "+0.33", "–"),
        ("r", "–", "Random real", OWN, 3, "−1.00", "–"),
        ("r", HOSTILE, "Distilled", OWN, 3, "+0.33", "–"),
    )
    for text in (reporting.markdown(made), reporting.page(made, {})):
        assert text.count("Order of the architectures") == 1 and "none below 6 architectures" in text
    rows = list(csv.DictReader(io.StringIO(reporting.comma_separated(made.lines))))
    assert len(rows) == 9 and {row["tau_archs"] for row in rows} == {"3"} and {row["tau_p"] for row in rows} == {""}
    assert {row["method"]: float(row["tau"]) for row in rows} == {DISTILLED: pytest.approx(1 / 3), RANDOM: -1.0}
    assert "Order of the architectures" not in reporting.markdown(FULL)


def test_an_order_of_many_architectures_has_a_p() -> None:
    cells = [
        dataclasses.replace(cell(DISTILLED, 0.1 * number), arch=f"net{number}", full_data=0.5 + 0.05 * number)
        for number in range(1, 7)
    ]
    made = report(*cells)
    assert reporting.order_table(made).rows == (("r", "adv", "Distilled", OWN, 6, "+1.00", "0.003"),)
    assert [row["tau_p"] for row in reporting.plain_rows(made.lines)] == [pytest.approx(2 / 720)] * 6


def test_pictures_repeat_and_tell_losers_from_winners() -> None:
    one = png_bytes(margins_figure(FULL))
    assert one == png_bytes(margins_figure(FULL)) and one.startswith(b"\x89PNG")

    def coloured(distilled: float) -> int:
        """Pixels of the distilled set's colour: its dots are filled where it wins, and hollow where it loses."""
        figure = margins_figure(report(cell(DISTILLED, distilled), cell(RANDOM, 0.60))).convert("RGB")
        colour = ImageColor.getrgb(method_colours({DISTILLED: None, RANDOM: None})[DISTILLED])
        return sum(count for count, found in figure.getcolors(figure.width * figure.height) or [] if found == colour)

    assert coloured(0.70) > 2 * coloured(0.50) > 0
    assert cost_figure(FULL.made) is not None
    assert cost_figure((Made("r", "a", (5,), (0,), ("",), ("",)),)) is None


def test_costs_that_variants_share_are_told_once() -> None:
    same = {DISTILLED: {"synthesize": 1.0}, RANDOM: {"synthesize": 2.0}}
    made = tuple(Made("r", name, (5,), (0,), ("",), ("",), {}, same) for name in "ab")
    rows = reporting.cost_table(Report("r", "", (), made)).rows
    assert [(row[1], row[2]) for row in rows] == [("a", "Distilled"), ("a", "Random real"), ("b", "Distilled")]


def test_rows_of_the_margins_can_be_told_apart() -> None:
    recipe = "cifar10-convnet-enhanced-ipc10"
    variants = ("as it is", "synthesis.crop_anneal=cosine", "synthesis.crop_anneal=off")
    rows = [(recipe, each, "Distilled", arch) for each in variants for arch in ("convnet3", "resnet18")]
    labels = _labels(rows)
    assert labels[:3] == ["convnet3", "resnet18", "synthesis.crop_anneal=cosine · convnet3"]
    assert len(set(labels)) == len(rows)
    assert _labels([(recipe, each, "Distilled") for each in variants])[0] == "as it is"
    assert _labels(rows[:1]) == [f"{recipe} · Distilled · convnet3"]
    long = _labels([("a", "x" * 200, "Distilled"), ("b", "y" * 200, "Random real")])
    assert [len(label) for label in long] == [LONGEST] * 2 and long[1].endswith("y · Random real")
    wide, narrow = (
        margins_figure(report(cell(DISTILLED, 0.7), cell(DISTILLED, 0.7, variant=name), variants=("adv", name)))
        for name in ("a very long variant's name, longer than others", "b")
    )
    assert wide.width > narrow.width
