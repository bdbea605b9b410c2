"""What the end of a run makes of its results, without computing any."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows import summary
from flows.distill import pipeline
from flows.recipe import Recipe
from flows.recipes import apply_overrides, get_recipe
from flows.results import Curriculum
from flows.run import Round
from flows.walk import Walk
from tasks.context import DataRef, StageContext
from tasks.ledger import Ledger
from tasks.refs import Ref
from tasks.report import ShownRound
from tasks.store import Store


def walked(monkeypatch: pytest.MonkeyPatch, *settings: str) -> tuple[Walk, Recipe, list[ShownRound]]:
    """A walk through a run on data of 24 classes, its recipe, and the rounds that its report will be drawn from."""
    recipe = apply_overrides(get_recipe("digits"), settings)
    data = DataRef(recipe.data, "a" * 64, "b" * 64, 24)
    walk = Walk(StageContext(cast(Store, None), data, recipe.compute, recipe.seed, "run", ledger=Ledger.of(())))
    rounds: list[ShownRound] = []
    draw = summary.draw_report

    def drawn(context: StageContext, asked: tuple[ShownRound, ...], *rest: Any) -> Any:
        rounds.extend(asked)
        return draw.fn(context, asked, *rest)

    monkeypatch.setattr(summary, "draw_report", SimpleNamespace(name="report", fn=drawn))
    return walk, recipe, rounds


@pytest.mark.parametrize(("block", "shown"), [(24, ["0-23"]), (10, ["0-9"]), (8, ["0-7", "8-15"]), (5, ["0-4", "5-9"])])
def test_a_report_is_made_of_the_shards_that_have_its_classes_and_of_no_others(
    block: int, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a thousand classes in blocks, it does not fetch a thousand images per slice."""
    walk, recipe, rounds = walked(monkeypatch, f"schedule.block_size={block}", "schedule.slices_per_shard=2")
    summary.illustrate(walk, recipe, pipeline(walk, recipe))
    titles = {part.ref.key: part.title for part in walk.parts}
    assert [[titles[shard.key] for shard in each.shards] for each in rounds] == [
        [f"synthesize slices {slices}, classes {classes}" for slices in curriculum for classes in shown]
        for curriculum in (("0-1", "2-3", "4-4"), ("5-6", "7-8", "9-9"))
    ]
    assert [each.student is not None for each in rounds] == [True, False]


def test_all_shards_of_a_set_from_a_folder_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are its curricula, each with all of its classes."""
    walk, recipe, rounds = walked(monkeypatch, "schedule.block_size=12")
    one, two, three, accuracy = (Ref("import", number * 64, "run", number * 64, 1) for number in "1234")
    only = Curriculum(1, 10, (), (one, two, three), None, Round("imported", "run"))
    results = SimpleNamespace(curricula=(only,), teacher=SimpleNamespace(accuracy=accuracy), evaluations={})
    summary.illustrate(walk, recipe, cast(Any, results))
    assert [each.shards for each in rounds] == [(one, two, three)]
