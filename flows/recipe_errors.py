"""What is wrong with a recipe's settings, in one sentence per field."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flows.catalogue import did_you_mean
from flows.recipe import Recipe, field_paths

_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "tuple": "a list"}
# Aliases in a YAML file of ten lines can stand for a value of gigabytes.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 200, 200


def explain(error: ValidationError) -> str:
    """Say what pydantic found wrong with the settings of a `Recipe`, one line each."""
    return "\n".join(_sentence(dict(one)) for one in error.errors())


def _sentence(error: dict[str, Any]) -> str:
    """Say in one sentence what pydantic found: the dotted field, its value, and what would be right."""
    steps = [str(step) for step in error["loc"]]
    key, kind, context = ".".join(steps), str(error["type"]), error.get("ctx", {})
    value, given = error["input"], _SHORT.repr(error["input"])
    known = field_paths(Recipe)
    if kind == "extra_forbidden":
        return f"Unknown key {key!r}.{did_you_mean(key, known)} `cudd show` lists every key."
    if kind == "missing":
        return f"{key} is missing." if not steps[-1].isdigit() else f"{'.'.join(steps[:-1])} needs more values."
    if kind == "value_error" and steps and steps[-1].isdigit():  # an element of a list
        key = ".".join(steps[:-1])
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{key} = {given} is out of range: it must be {words} {context[name]}.{_meaning(steps)}"
    if kind == "literal_error":
        return f"{key} = {given} is not allowed: it must be {context['expected']}.{_meaning(steps)}"
    if kind == "value_error":
        shown = f"{key}: " if isinstance(value, Mapping) else f"{key} = {given}: "
        return f"{shown if key else ''}{context['error']}."
    expected = next((words for start, words in _KINDS.items() if kind.startswith(start)), "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key} is a section: set its fields, for example {_example(key, known)}."
    return f"{key} = {given} must be {expected}.{_meaning(steps)}" if expected else f"{key} = {given}: {error['msg']}."


def _example(section: str, known: Mapping[str, Any]) -> str:
    # Sections in a list are not keys of their own; the only ones, other_teachers, have the fields of `teacher`.
    like = re.sub(r"^other_teachers\.\d+", "teacher", section)
    example = next((key for key in known if key.startswith(like + ".")), like)
    return example if like == section else example.removeprefix(like + ".")


def _meaning(steps: list[str]) -> str:
    """Return the description of a field, as a sentence to append to a message."""
    model: Any = Recipe
    field: FieldInfo | None = None
    for step in steps:
        if step.isdigit() and get_origin(model) is tuple:
            model = get_args(model)[0]
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or step not in model.model_fields:
            break
        field = model.model_fields[step]
        model = field.annotation
    return f" ({field.description.rstrip('.')}.)" if field is not None and field.description else ""
