"""The arithmetic of the table: margins, references, shared baselines, scores, orders."""

from __future__ import annotations

import dataclasses
import math

import pytest

from cudd_core.comparison import DISTILLED, HARD, OWN, PLAIN, RANDOM, Cell, tabulate
from cudd_core.robust_scores import augmentation_robust_score, label_robust_score


def cell(method: str, *values: float, variant: str = "a", protocol: str = OWN, **more: object) -> Cell:
    base = Cell(
        recipe="r",
        variant=variant,
        method=method,
        arch="net",
        protocol=protocol,
        ipc=10,
        values=values,
        networks=len(values),
        teacher=0.8,
        full_data=0.8,
        image_bytes=1,
        label_bytes=2,
        seconds=3.0,
        identity=(method, variant, protocol),
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


ALONE = {("r", "a"): ("r", "a")}


def test_margin_is_over_random_real_images_of_the_same_variant_network_and_protocol() -> None:
    cells = [
        cell(DISTILLED, 0.70, 0.72),
        cell(RANDOM, 0.60, 0.60, 0.66),
        cell(DISTILLED, 0.50, 0.52, arch="other"),
        cell(RANDOM, 0.55, 0.55, arch="other"),
        cell(DISTILLED, 0.30, 0.30, protocol=HARD),
        cell(RANDOM, 0.20, 0.20, protocol=HARD),
    ]
    lines = tabulate(cells, ALONE)
    margins = [line.margin.mean if line.margin else None for line in lines]
    assert margins == [pytest.approx(0.09), None, pytest.approx(-0.04), None, pytest.approx(0.1), None]
    first = lines[0].margin
    assert first is not None and first.error == pytest.approx(math.sqrt(0.0002 / 2 + 0.0012 / 3))


def test_a_loser_keeps_its_line_and_without_random_there_is_no_margin() -> None:
    lines = tabulate([cell(DISTILLED, 0.1), cell("sre2l", 0.05)], ALONE)
    assert [line.cell.method for line in lines] == [DISTILLED, "sre2l"]
    assert all(line.margin is None for line in lines)


def test_differences_are_against_the_distilled_set_of_the_reference_variant() -> None:
    cells = [
        cell(DISTILLED, 0.70, 0.72),
        cell(RANDOM, 0.60, 0.62),
        cell(DISTILLED, 0.69, 0.73, variant="b"),
        cell(RANDOM, 0.61, 0.61, variant="b"),
    ]
    lines = tabulate(cells, {("r", "a"): ("r", "a"), ("r", "b"): ("r", "a")})
    own, random, other, other_random = lines
    assert own.against is None
    assert random.against is not None and random.against.mean == pytest.approx(-0.1)
    assert (
        other.against is not None and other.against.mean == pytest.approx(0.0) and other.against.p == pytest.approx(1)
    )
    assert other_random.against is not None and other_random.against.mean == pytest.approx(-0.1)
    assert other.margin is not None and other.margin.mean == pytest.approx(0.10), "its own variant's random images"


def test_without_its_reference_a_variant_keeps_its_lines_and_has_no_difference() -> None:
    """As where distilling the reference variant failed."""
    cells = [cell(DISTILLED, 0.69, 0.73, variant="b"), cell(RANDOM, 0.61, 0.61, variant="b")]
    lines = tabulate(cells, {("r", "b"): ("r", "a")})
    assert [line.cell.method for line in lines] == [DISTILLED, RANDOM]
    assert lines[0].against is lines[1].against is None
    assert lines[0].margin is not None and lines[0].margin.mean == pytest.approx(0.10)


def test_a_baseline_that_is_the_reference_s_own_set_differs_from_it_by_nothing() -> None:
    """As `selection` does where synthesis is off: only the distilled set itself has no difference."""
    same = ("one", "two")
    distilled, selection = tabulate(
        [cell(DISTILLED, 0.70, 0.72, identity=same), cell("selection", 0.70, 0.72, identity=same)], ALONE
    )
    assert distilled.against is None
    assert selection.against is not None and selection.against.mean == 0


def test_a_baseline_that_variants_share_has_one_line_and_counts_for_each() -> None:
    shared = ("one", "two")
    cells = [
        cell(DISTILLED, 0.70, 0.72),
        cell(RANDOM, 0.60, 0.62, identity=shared),
        cell(DISTILLED, 0.70, 0.72, variant="b", identity=(DISTILLED, "a", OWN)),
        cell(RANDOM, 0.60, 0.62, variant="b", identity=shared),
    ]
    lines = tabulate(cells, {("r", "a"): ("r", "a"), ("r", "b"): ("r", "a")})
    assert [(line.cell.method, line.cell.shared) for line in lines] == [
        (DISTILLED, ("a",)),
        (RANDOM, ("a", "b")),
        (DISTILLED, ("b",)),
    ]
    assert lines[2].margin is not None and lines[2].margin.mean == pytest.approx(0.10)


def test_scores_need_all_that_they_are_made_of() -> None:
    cells = [
        cell(DISTILLED, 0.70),
        cell(RANDOM, 0.66),
        cell(DISTILLED, 0.40, protocol=HARD),
        cell(RANDOM, 0.35, protocol=HARD),
        cell(DISTILLED, 0.50, protocol=PLAIN),
        cell(RANDOM, 0.48, protocol=PLAIN),
    ]
    by_name = {(line.cell.method, line.cell.protocol): line for line in tabulate(cells, ALONE)}
    assert by_name[DISTILLED, OWN].lrs == label_robust_score(0.70, 0.40, 0.66, 0.8)
    assert by_name[RANDOM, OWN].lrs == label_robust_score(0.66, 0.35, 0.66, 0.8)
    assert by_name[DISTILLED, OWN].ars == augmentation_robust_score(0.70, 0.50, 0.66, 0.48)
    assert all(line.lrs is line.ars is None for (_, protocol), line in by_name.items() if protocol != OWN)
    # Which scores the distilled set still has without one of these cells.
    scores = [tabulate([each for each in cells if each is not missing], ALONE)[0] for missing in cells[1:]]
    assert [(line.lrs is not None, line.ars is not None) for line in scores] == [
        (False, False),
        (False, True),
        (True, True),
        (True, False),
        (True, False),
    ]
    assert all(line.lrs is None for line in tabulate([dataclasses.replace(c, full_data=None) for c in cells], ALONE))


def test_means_and_spreads_are_over_the_units() -> None:
    assert cell(DISTILLED, 0.5).std is None
    assert cell(DISTILLED, 0.5, 0.7).mean == pytest.approx(0.6)
    assert cell(DISTILLED, 0.5, 0.7).std == pytest.approx(math.sqrt(0.02))


FULL_DATA = {"a": 0.7, "b": 0.8, "c": 0.9}


def over_archs(method: str, means: dict[str, float], **more: object) -> list[Cell]:
    """Two networks an architecture, whose mean this is."""
    return [
        cell(method, mean - 0.01, mean + 0.01, **{"arch": arch, "full_data": FULL_DATA.get(arch), **more})
        for arch, mean in means.items()
    ]


def test_every_set_s_order_of_architectures_is_held_against_all_of_the_data() -> None:
    cells = [
        *over_archs(DISTILLED, {"a": 0.5, "b": 0.6, "c": 0.55}),
        *over_archs(RANDOM, {"a": 0.3, "b": 0.2, "c": 0.1}),
        *over_archs("herding", {"a": 0.1, "b": 0.2, "c": 0.3}),
        *over_archs(DISTILLED, {"a": 0.6, "b": 0.6, "c": 0.6}, protocol=HARD),
    ]
    lines = tabulate(cells, ALONE)
    found = {(line.cell.method, line.cell.protocol): line.ranks for line in lines}
    taus = {name: ranks and ranks.tau for name, ranks in found.items()}
    assert taus == {
        (DISTILLED, OWN): pytest.approx(1 / 3),
        (RANDOM, OWN): -1,
        ("herding", OWN): 1,
        (DISTILLED, HARD): None,
    }
    assert all(line.ranks is not None and (line.ranks.n, line.ranks.p) == (3, None) for line in lines)


def test_an_order_needs_three_architectures_that_were_trained_on_all_of_the_data() -> None:
    two = over_archs(DISTILLED, {"a": 0.5, "b": 0.6})
    assert all(line.ranks is None for line in tabulate(two, ALONE))
    unknown = over_archs(DISTILLED, {"d": 0.1})
    assert all(line.ranks is None for line in tabulate([*two, *unknown], ALONE))
    third = over_archs(DISTILLED, {"c": 0.7})
    assert [line.ranks.n for line in tabulate([*two, *unknown, *third], ALONE) if line.ranks] == [3] * 4
