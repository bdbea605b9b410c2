from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cudd_core.objectives.configuration import MttConfig, SynthesisConfig
from cudd_core.schedule import ScheduleConfig
from tasks import keys
from tasks.keys import stage_key

CONFIG: dict[str, Any] = {"synthesis": SynthesisConfig(), "seed": 0, "classes": (0, 1, 2)}
INPUTS = {"teacher": "a" * 64, "selection": "b" * 64}
KEY = stage_key("synthesize", 1, CONFIG, INPUTS)


def test_key_is_sha256_hex() -> None:
    assert len(KEY) == 64 and int(KEY, 16)


def test_stage_version_and_numerics_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stage_key("relabel", 1, CONFIG, INPUTS) != KEY
    assert stage_key("synthesize", 2, CONFIG, INPUTS) != KEY
    monkeypatch.setattr(keys, "NUMERICS_VERSION", keys.NUMERICS_VERSION + 1)
    assert stage_key("synthesize", 1, CONFIG, INPUTS) != KEY


CHANGED = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value + 0.125,
    MttConfig: lambda value: value.model_copy(update={"steps": value.steps + 1}),
    tuple: lambda value: (*value[:-1], value[-1] / 2) if value else (1,),
}
OTHER_CHOICE = {"objective": "mtt", "init": "noise", "regularization": "feature", "crops": "image"} | {
    "crop_anneal": "linear",
    "class_order": "permuted",
    "bn_statistics": "pool",
}


@pytest.mark.parametrize("field", SynthesisConfig.model_fields)
def test_every_field_of_a_configuration_counts(field: str) -> None:
    config = SynthesisConfig()
    value = getattr(config, field)
    other = OTHER_CHOICE[field] if isinstance(value, str) else CHANGED[type(value)](value)
    changed = CONFIG | {"synthesis": config.model_copy(update={field: other})}
    assert stage_key("synthesize", 1, changed, INPUTS) != KEY


def test_inputs_count_by_name_and_digest() -> None:
    keys_of = {
        stage_key("s", 1, {}, inputs)
        for inputs in ({}, {"a": "1" * 64}, {"a": "2" * 64}, {"b": "1" * 64}, {"a": "1" * 64, "b": "1" * 64})
    }
    assert len(keys_of) == 5


def test_configuration_and_inputs_do_not_mix() -> None:
    assert stage_key("s", 1, {"a": "x"}, {}) != stage_key("s", 1, {}, {"a": "x"})


def test_spelling_does_not_count() -> None:
    assert stage_key("synthesize", 1, dict(reversed(CONFIG.items())), dict(reversed(INPUTS.items()))) == KEY
    assert stage_key("synthesize", 1, CONFIG | {"classes": [0, 1.0, 2]}, INPUTS) == KEY
    assert stage_key("s", 1, {"iterations": 4000}, {}) == stage_key("s", 1, {"iterations": 4000.0}, {})
    assert stage_key("synthesize", 1, CONFIG | {"synthesis": SynthesisConfig().model_dump()}, INPUTS) == KEY
    dumped = json.loads(json.dumps(CONFIG | {"synthesis": SynthesisConfig().model_dump()}))
    assert stage_key("synthesize", 1, dumped, INPUTS) == KEY


def test_ipc_enters_only_if_asked_for() -> None:
    def key(ipc: int) -> str:
        return stage_key("select", 1, {"block": ScheduleConfig(ipc=ipc).block_size}, {})

    assert key(10) == key(50)


def test_objects_without_a_canonical_form_are_refused() -> None:
    with pytest.raises(TypeError, match="no canonical JSON form"):
        stage_key("s", 1, {"classes": {1, 2}}, {})


def test_key_is_the_same_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stored outputs are found by it: changing how keys are made means computing everything again."""
    monkeypatch.setattr(keys, "NUMERICS_VERSION", 1)
    assert (
        stage_key("s", 1, {"b": (1.0, {"c": None}), "é": 0.1}, {"x": "y"})
        == "42fdfe9aafd9e478ec0843469dc0cf9b0498c8bece6e56bce27a7dc4df84fefc"
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text()), st.text(), st.integers())
def test_a_new_field_changes_the_key(config: dict[str, Any], name: str, value: int) -> None:
    changed = config | {name: value}
    same = config == changed
    assert (stage_key("s", 1, config, {}) == stage_key("s", 1, changed, {})) == same
