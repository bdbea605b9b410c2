"""What a comparison runs, before anything runs."""

from __future__ import annotations

import pytest

from cudd_core.baselines import Method, baseline
from cudd_core.comparison import AS_IT_IS
from cudd_core.errors import ConfigError
from cudd_core.schedule import curriculum_boundaries
from flows.ablations import ABLATIONS
from flows.catalogue import recipe_names
from flows.recipes import apply_overrides, get_recipe
from flows.variants import expand


def labels(*arguments: object, **named: object) -> list[tuple[str, str]]:
    return [variant.name for variant in expand(*arguments, **named)]  # type: ignore[arg-type]


EQ_6 = [name for name in recipe_names() if get_recipe(name).synthesis.objective == "cudd"]


@pytest.mark.parametrize("name", ABLATIONS)
@pytest.mark.parametrize("recipe", EQ_6)
def test_every_ablation_is_a_recipe_of_every_recipe(name: str, recipe: str) -> None:
    ablation = ABLATIONS[name]
    variants = expand([recipe], ablation=name)
    assert [variant.label for variant in variants] == list(ablation.variants)
    assert {variant.reference for variant in variants} == {(recipe, ablation.reference)}
    assert ablation.reference in ablation.variants
    settings = [variant.recipes[0].model_dump() for variant in variants]
    assert all(settings.count(one) == 1 for one in settings), "two variants that are the same recipe show nothing"


def test_terms_of_eq_6_cannot_be_switched_off_where_another_objective_is_minimised() -> None:
    with pytest.raises(ConfigError, match="objective = mtt does not read"):
        expand(["digits-mtt-ipc10"], ablation="objective")


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name not in ("warm-start",)])
def test_the_reference_of_an_ablation_is_the_paper_s_own_method(name: str) -> None:
    recipe = get_recipe("digits")
    changed = apply_overrides(recipe, ABLATIONS[name].variants[ABLATIONS[name].reference])
    assert changed == recipe


@pytest.mark.parametrize("name", EQ_6)
@pytest.mark.parametrize(("ablation", "label"), [("init", "SRe2L, noise"), ("cost", "SRe2L")])
def test_sre2l_as_a_variant_is_the_baseline(ablation: str, label: str, name: str) -> None:
    recipe = get_recipe(name)
    changed = apply_overrides(recipe, ABLATIONS[ablation].variants[label])
    due = baseline("sre2l", Method(recipe.schedule, recipe.select, recipe.synthesis))
    assert (changed.select, changed.synthesis) == (due.select, due.synthesis)
    assert curriculum_boundaries(changed.schedule) == curriculum_boundaries(due.schedule) == (recipe.schedule.ipc,)


@pytest.mark.parametrize("ipc", [1, 5, 10, 40, 200])
def test_schedules_of_figure_7(ipc: int) -> None:
    found = {
        variant.label: curriculum_boundaries(variant.recipes[0].schedule)
        for variant in expand(["digits"], [f"schedule.ipc={ipc}"], ablation="schedule")
    }
    assert found["one curriculum"] == (ipc,)
    assert set(found["logarithmic"]) <= set(found["uniform"]), "so that both find each other's first curricula"
    if ipc == 40:
        assert found["logarithmic"] == (5, 10, 20, 40) and len(found["uniform"]) == 8


def test_without_variants_the_first_recipe_on_the_same_data_is_the_reference() -> None:
    variants = expand(["cifar10-ipc10", "digits", "cifar10-ipc50"])
    assert [variant.label for variant in variants] == [AS_IT_IS] * 3
    assert [variant.reference[0] for variant in variants] == ["cifar10-ipc10", "digits", "cifar10-ipc10"]


def test_vary_runs_all_combinations_and_the_first_is_the_reference() -> None:
    variants = expand(["digits"], vary=["synthesis.weight_adv=1,0", "synthesis.init=real,noise"])
    assert [(v.recipes[0].synthesis.weight_adv, v.recipes[0].synthesis.init) for v in variants] == [
        (1, "real"),
        (1, "noise"),
        (0, "real"),
        (0, "noise"),
    ]
    assert {v.reference for v in variants} == {("digits", variants[0].label)}
    assert variants[3].label == "synthesis.weight_adv=0, synthesis.init=noise"


def test_a_list_in_brackets_is_one_value() -> None:
    variants = expand(["digits"], vary=["other_teachers=[],[{arch: convnet3, seed: 1}, {seed: 2}]", "seed=0,1"])
    found = [([each.seed for each in v.recipes[0].other_teachers], v.recipes[0].seed) for v in variants]
    assert found == [([], 0), ([], 1), ([1, 2], 0), ([1, 2], 1)]
    assert variants[2].label == "other_teachers=[{arch: convnet3, seed: 1}, {seed: 2}], seed=0"


def test_repeats_take_the_seeds_after_the_recipe_s() -> None:
    (variant,) = expand(["digits"], ["seed=7"], repeats=3)
    assert [recipe.seed for recipe in variant.recipes] == [7, 8, 9]
    with pytest.raises(ConfigError, match="seed"):
        expand(["digits"], [f"seed={2**31 - 1}"], repeats=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ablation": "objectiv"}, "Did you mean objective"),
        ({"vary": ["synthesis.weight_adv"]}, "at least two different values"),
        ({"vary": ["synthesis.weight_adv=1,1"]}, "at least two different values"),
        ({"vary": ["synthesis.weight_advv=1,2"]}, "Unknown key"),
        ({"vary": ["synthesis.weight_adv=1,-2"]}, "at least 0"),
        ({"vary": ["synthesis.weight_adv=1,2"], "ablation": "alpha-adv"}, "synthesis.weight_adv is set twice"),
        ({"vary": ["seed=1,2", "seed=3,4"]}, "seed is set twice"),
        ({"overrides": ["synthesis.weight_reg=2"], "ablation": "objective"}, "synthesis.weight_reg is set twice"),
        ({"overrides": ["synthesis={weight_reg: 2}"], "ablation": "objective"}, r"synthesis\.\w+ is set twice"),
        ({"overrides": ["synthesis.weight_reg=3"], "vary": ["synthesis={iterations: 1},{iterations: 2}"]}, "set twice"),
        ({"vary": ["seed=0,1"], "repeats": 2}, "--repeats runs one seed after another"),
        ({"recipes": ["digits", "digits"]}, "named twice"),
    ],
)
def test_what_would_mislead_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand(**({"recipes": ["digits"]} | arguments))  # type: ignore[arg-type]
