"""What Prefect's form of a deployment shows and refuses, as Prefect's server validates it."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from flows.catalogue import recipe_names
from flows.compare import compare
from flows.continual import continual
from flows.coverage import coverage
from flows.distill import distill
from flows.robustness import robustness

SCHEMA: Any = parameter_schema(distill).model_dump_for_openapi()
COMPARE: Any = parameter_schema(compare).model_dump_for_openapi()


def errors(schema: Any = SCHEMA, **values: object) -> list[str]:
    return [str(error.message) for error in validate(values, schema, preprocess=True)]


@pytest.mark.parametrize("schema", [SCHEMA, COMPARE])
def test_every_field_says_what_it_means(schema: Any) -> None:
    assert all(field.get("description") for field in schema["properties"].values())


@pytest.mark.parametrize("recipe", [*recipe_names(), "mine.yaml", "folder/mine.toml"])
def test_recipes_are_offered_by_name_or_as_a_file(recipe: str) -> None:
    assert errors(recipe=recipe) == []


def test_untouched_fields_are_fine() -> None:
    """The form sends null for the numbers that nobody changed."""
    untouched = {name: field["default"] for name, field in SCHEMA["properties"].items()}
    assert untouched["ipc"] is None
    assert errors(**untouched) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "digit"}, "'digit' is not valid"),
        ({"ipc": 0}, "0 is less than the minimum of 1"),
        ({"ipc": 5001}, "5001 is greater than the maximum of 5000"),
        ({"ipc": 1.5}, "1.5 is not valid"),
        ({"seed": -1}, "-1 is less than the minimum of 0"),
        ({"overrides": ["evaluation.seeds 1"]}, "'evaluation.seeds 1' does not match"),
        ({"force_stages": ["sqeeze"]}, "'sqeeze' is not one of"),
        ({"runner": "dask"}, "'dask' does not match"),
    ],
)
def test_a_bad_value_is_refused(values: dict[str, object], message: str) -> None:
    (found,) = errors(**values)
    assert message in found


def test_a_comparison_s_form_takes_what_nobody_changed() -> None:
    untouched = {name: field["default"] for name, field in COMPARE["properties"].items()}
    assert errors(COMPARE, **untouched) == []
    assert errors(COMPARE, recipes=["digits", "mine.yaml"], ablation="objective", vary=["seed=1,2"]) == []


@pytest.mark.parametrize(
    "values",
    [
        {"recipes": []},
        {"recipes": ["digit"]},
        {"baselines": ["nobody"]},
        {"seeds": -1},
        {"repeats": 0},
        {"ablation": "objectiv"},
        {"vary": ["seed"]},
        {"runner": "dask"},
    ],
)
def test_a_comparison_s_form_refuses_a_bad_value(values: dict[str, object]) -> None:
    assert len(errors(COMPARE, **values)) == 1


# ---- laboratories ---------------------------------------------------------------------------------------------------

LABORATORIES: dict[str, Any] = {
    each.name: parameter_schema(each).model_dump_for_openapi() for each in (robustness, continual, coverage)
}


@pytest.mark.parametrize("name", LABORATORIES)
def test_a_laboratory_asks_for_a_run_and_explains_the_rest(name: str) -> None:
    schema = LABORATORIES[name]
    assert schema["required"] == ["run"]
    assert all(field.get("description") for field in schema["properties"].values())
    untouched = {field: form["default"] for field, form in schema["properties"].items() if field != "run"}
    assert validate({"run": "0123", **untouched}, schema, preprocess=True) == []


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("robustness", {"severities": [0]}, "0 is less than the minimum of 1"),
        ("robustness", {"severities": [6]}, "6 is greater than the maximum of 5"),
        ("robustness", {"seeds": 0}, "0 is less than the minimum of 1"),
        ("robustness", {"corruptions": ["fogg"]}, "'fogg' is not one of"),
        ("continual", {"steps": 0}, "0 is less than the minimum of 1"),
        ("coverage", {"neighbours": 101}, "101 is greater than the maximum of 100"),
    ],
)
def test_a_laboratory_refuses_a_bad_value(name: str, values: dict[str, object], message: str) -> None:
    (found,) = validate({"run": "0123", **values}, LABORATORIES[name], preprocess=True)
    assert message in str(found.message)
