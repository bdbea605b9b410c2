"""From what distillations measured and took to the cells of a comparison, without computing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from cudd_core.codec import write_record
from cudd_core.comparison import DISTILLED, HARD, OWN, PLAIN
from cudd_core.image_table import IMAGE_FILE
from cudd_core.records import Shard
from flows.comparison import (
    Distillation,
    Measured,
    _full_data,
    _image_bytes,
    _work_of,
    cells_of,
    made_of,
    ranking_protocols,
    set_seconds,
    stage_seconds,
)
from flows.recipes import apply_overrides, get_recipe
from flows.run import Round
from flows.variants import Variant
from flows.walk import Walk
from tasks.context import DataRef, StageContext
from tasks.ledger import Ledger
from tasks.refs import Ref

ARCH = "convnet1"
TOOK = {"s": 1.0, "t": 2.0, "y": 4.0, "l": 8.0, "n": 16.0, "unknown": None}
"""MLflow run of a stage → its seconds."""


def ref(stage: str, run: str) -> Ref:
    return Ref(stage, run, run, run, 1)


def measured(protocol: str, *values: float, keys: tuple[str, ...]) -> Measured:
    return Measured(DISTILLED, ARCH, protocol, values, keys)


def distillation(*values: float, **changes: Any) -> Distillation:
    made = Distillation(
        summary={"accuracy": {"teacher": 0.9}},
        measured=(measured(OWN, *values, keys=("k", "m")), measured(PLAIN, 0.1, 0.3, keys=("p", "q"))),
        full_data={ARCH: 0.8},
        image_bytes={DISTILLED: 10},
        label_bytes={(DISTILLED, OWN): 20, (DISTILLED, PLAIN): 30},
        work={DISTILLED: {"select": ("s",), "synthesize": ("y", "t"), "labels": ("l",), "evaluation": ("n",)}},
        reused=0,
        computed=0,
    )
    return replace(made, **changes)


VARIANT = Variant("as it is", (get_recipe("digits"),), ("digits", "as it is"))


def test_a_network_is_a_unit_where_there_is_one_distillation() -> None:
    own, plain = cells_of(VARIANT, [distillation(0.5, 0.7)], TOOK)
    assert (own.values, own.networks, own.identity) == ((0.5, 0.7), 2, ("k", "m"))
    assert (own.protocol, own.label_bytes, own.full_data, own.teacher) == (OWN, 20, 0.8, 0.9)
    assert (plain.protocol, plain.label_bytes, plain.values) == (PLAIN, 30, (0.1, 0.3))
    assert own.seconds == plain.seconds == 1 + 2 + 4


def test_a_distillation_is_a_unit_where_there_are_several() -> None:
    other = distillation(0.1, 0.2, summary={"accuracy": {"teacher": 0.7}}, full_data={ARCH: 0.6})
    other = replace(other, work={DISTILLED: {"select": ("t",), "labels": ("l",)}})
    own, _ = cells_of(VARIANT, [distillation(0.5, 0.7), other], TOOK)
    assert own.values == pytest.approx((0.6, 0.15)) and own.networks == 4
    assert own.identity == ("k", "m", "k", "m")
    assert (own.teacher, own.full_data) == (pytest.approx(0.8), pytest.approx(0.7))
    assert own.seconds == (7 + 2) / 2


def test_the_scores_protocols_change_the_labels_or_switch_augmentation_off_and_change_nothing_else() -> None:
    recipe = get_recipe("cifar10-ipc10")
    before, protocols = recipe.model_dump(), ranking_protocols(recipe)
    assert set(protocols) == {HARD, PLAIN}
    # With these, a batch is the set's own images (tests/test_replay.py).
    for name, section, changes in (
        (HARD, "evaluation", {"labels": "hard"}),
        (PLAIN, "relabel", {"crop_scale": (1.0, 1.0), "flip": False, "mix": "none"}),
    ):
        assert all(before[section][key] != value for key, value in changes.items())
        assert protocols[name].model_dump() == before | {section: before[section] | changes}


def test_what_was_not_measured_is_not_told() -> None:
    timeless = distillation(0.5, 0.7, work={DISTILLED: {"select": ("s", "unknown")}}, full_data={})
    assert stage_seconds(timeless, DISTILLED, TOOK) is None and set_seconds(None) is None
    assert cells_of(VARIANT, [timeless], TOOK)[0].seconds is None
    own, _ = cells_of(VARIANT, [distillation(0.5, 0.7), timeless], TOOK)
    assert own.seconds is None and own.full_data == 0.8


def test_a_set_cost_what_its_own_rounds_took_and_selection_those_of_the_distilled_one() -> None:
    rounds = [
        Round("curriculum 1", "", [ref("select", "s"), ref("synthesize", "y")]),
        Round("curriculum 2", "", [ref("select", "t"), ref("synthesize", "y")]),
        Round("random 1", "", [ref("select", "r"), ref("keep", "k")]),
    ]
    names = (DISTILLED, "selection", "random")
    results = SimpleNamespace(
        networks={name: {ARCH: (ref("train_network", f"{name} net"),)} for name in names},
        evaluations={name: {ARCH: (ref("measure", f"{name} test"),)} for name in names},
        labels={name: (ref("relabel", f"{name} labels"),) for name in names},
    )
    run = SimpleNamespace(tally=SimpleNamespace(rounds=rounds))
    work = {name: _work_of(cast(Any, run), cast(Any, results), name) for name in names}
    made = {"select": ("s", "t"), "synthesize": ("y",)}
    for name, own in zip(names, (made, made, {"select": ("r",), "synthesize": ("k",)}), strict=True):
        after = {"labels": (f"{name} labels",), "evaluation": (f"{name} net", f"{name} test")}
        assert work[name] == own | after


def test_the_report_of_a_variant_names_all_distillations_and_tells_of_the_first() -> None:
    def made(number: int, seconds: float) -> Distillation:
        rounds = [{"index": 1, "student_accuracy": 0.1 * number}, {"index": 2, "student_accuracy": None}]
        run = {"curricula": rounds, "dataset": {"digest": f"digest {number}"}, "mlflow_run_id": f"run {number}"}
        work = {DISTILLED: {"select": (f"s{number}",)}, "random": {"select": ("unknown",)}}
        times[f"s{number}"] = seconds
        return distillation(0.5, summary=run, work=work)

    times: dict[str, float | None] = {"unknown": None}
    digits = get_recipe("digits")
    recipes = (digits, digits.model_copy(update={"seed": 4, "name": "other"}))
    found = made_of(Variant("v", recipes, ("digits", "v")), [made(1, 3.0), made(2, 5.0)], times)
    assert (found.recipe, found.variant, found.boundaries, found.seeds) == ("digits", "v", (5, 10), (0, 4))
    assert (found.digests, found.runs) == (("digest 1", "digest 2"), ("run 1", "run 2"))
    assert found.students == {1: 0.1}, "the last curriculum has none"
    assert found.seconds == {DISTILLED: {"select": 3.0}}, "what was not timed took no seconds that are known"


def test_the_bytes_of_images_are_those_of_their_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.arange(3)
    for name in "ab":
        pixels = torch.full((3, 1, 8, 8), ord(name), dtype=torch.uint8)
        write_record(Shard(pixels, numbers, 0 * numbers, numbers, 1), tmp_path / name)
    monkeypatch.setattr("flows.comparison.fetch_input_folder", lambda store, ref: tmp_path / ref.key)
    files = [tmp_path / name / IMAGE_FILE for name in "ab"]
    context = cast(Any, SimpleNamespace(store=None))
    assert _image_bytes(context, [ref("synthesize", name) for name in "ab"]) == sum(f.stat().st_size for f in files)


@pytest.mark.parametrize(
    ("archs", "others", "trained"),
    [
        ("convnet3-w32,convnet2-w8,convnet1-w4", True, ["convnet2-w8", "convnet1-w4"]),
        ("convnet2-w8,convnet1-w4", True, ["convnet2-w8", "convnet1-w4"]),
        ("convnet2-w8,convnet1-w4", False, []),
        ("convnet3-w32", True, []),
    ],
)
def test_only_who_asks_for_it_trains_others_than_the_teacher_on_all_of_the_data(
    archs: str, others: bool, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = apply_overrides(get_recipe("digits"), [f"evaluation.archs={archs}"])
    data = DataRef(recipe.data, "a" * 64, "b" * 64, 10)
    walk = Walk(StageContext(cast(Any, None), data, recipe.compute, recipe.seed, "run", ledger=Ledger.of(())))
    results = SimpleNamespace(teacher=SimpleNamespace(accuracy=ref("measure", "of the teacher")))

    def fetch(context: StageContext, wanted: Ref, kind: type) -> Any:
        titles = {part.ref.key: part.title for part in walk.parts}
        return SimpleNamespace(accuracy=titles.get(wanted.key, wanted.key))

    monkeypatch.setattr("flows.comparison.fetch", fetch)
    found = _full_data(walk, recipe, cast(Any, results), others)
    assert found == {"convnet3-w32": "of the teacher"} | {arch: f"measure {arch} on all data" for arch in trained}
    assert [part.title for part in walk.parts if part.stage == "squeeze"] == [f"squeeze {arch}" for arch in trained]
