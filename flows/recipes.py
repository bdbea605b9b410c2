"""Recipes by name, from files, and with changes by `--set key=value`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cudd_core.errors import ConfigError
from flows.catalogue import did_you_mean, merge, recipe_names, settings_of
from flows.recipe import Recipe, field_paths
from flows.recipe_errors import explain
from flows.recipe_text import FILE_SUFFIXES, read_settings, value_of

_OF_WEIGHTS = frozenset({"class_names", "mean", "std"})
"""Fields of a teacher that describe only its own weights: another teacher never inherits them from the first."""


def get_recipe(name: str) -> Recipe:
    """Return the named recipe.

    Raises:
        ConfigError: no recipe of that name.

    Example:
        >>> get_recipe("cifar10-ipc50").schedule.ipc
        50
    """
    return _validated({"name": name, **settings_of(name)})


def load_recipe(path: Path) -> Recipe:
    """Return the recipe of a YAML, TOML or JSON file: `extends: NAME` (a named recipe) and what differs from it.

    Without `extends`, the file changes the defaults of `Recipe`; without `name`, the recipe is named after the file.

    Raises:
        ConfigError: a file that cannot be read or parsed (with the line), an unknown recipe or key, a bad value.
    """
    settings = read_settings(path)
    base = settings.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the name of a recipe, not {base!r}.")
    try:
        inherited = settings_of(base) if base else {}
        return _validated(merge({"name": path.stem}, inherited, settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def find_recipe(name_or_file: str) -> Recipe:
    """Return a recipe by name, or from a file if the text looks like one (a suffix or a slash) and is not a name."""
    looks_like_file = Path(name_or_file).suffix in FILE_SUFFIXES or "/" in name_or_file
    if looks_like_file and name_or_file not in recipe_names():
        return load_recipe(Path(name_or_file).expanduser())
    return get_recipe(name_or_file)


def apply_overrides(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return `recipe` with `key=value` changes, for example `schedule.ipc=20` or `evaluation.archs=convnet3,resnet18`.

    Values of text fields are taken literally. Other values are YAML with `true` and `false` as the only booleans, so
    `off` and `none` stay words. A list may be written with commas only; a list of mappings needs its brackets, for
    example `other_teachers=[{arch: resnet50}, {seed: 1}]`.

    Raises:
        ConfigError: no `=`, an unknown key (near misses are named), or a value that is not allowed there.
    """
    settings = recipe.model_dump()
    known = field_paths(Recipe)
    for text in overrides:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {text!r} is not of the form key=value, for example --set schedule.ipc=20.")
        if key not in known:
            raise ConfigError(f"Unknown key {key!r}.{did_you_mean(key, known)} `cudd show` lists every key.")
        change: Any = value_of(key, raw, known[key])
        for part in reversed(key.split(".")):
            change = {part: change}
        settings = merge(settings, change)
    return _validated(settings)


def changes_of(recipe: Recipe) -> list[str] | None:
    """Return the `key=value` changes that make `recipe` from the recipe of its name; None if that cannot be done."""
    if recipe.name not in recipe_names():
        return None
    named = get_recipe(recipe.name)
    before, after = (flat(each.model_dump(mode="json")) for each in (named, recipe))
    changes = [f"{key}={_written(value)}" for key, value in after.items() if value != before[key]]
    try:
        return changes if apply_overrides(named, changes) == recipe else None
    except ConfigError:
        return None


def _written(value: object) -> str:
    """Return a JSON value as `--set` takes it, the commonest ones as people write them."""
    if isinstance(value, list) and value and all(isinstance(each, str) and "," not in each for each in value):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names, as `--set` takes them."""
    rows: dict[str, Any] = {}
    for name, value in values.items():
        rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return rows


def stored_recipe(config: object, of: str) -> Recipe:
    """Return the complete recipe that a run or an export carries. Raises ConfigError if another version wrote it."""
    return _checked(config, f"The recipe of {of} is not one of this version.\n")


def _validated(settings: Mapping[str, Any]) -> Recipe:
    """Merge settings over the defaults of `Recipe`, whose sections may differ from their classes', and check them.

    The settings of another teacher are merged over those of the first one.
    """
    merged = merge(Recipe(name="defaults").model_dump(), settings)
    first, others = merged["teacher"], merged["other_teachers"]
    if isinstance(first, Mapping) and isinstance(others, list | tuple):
        shared = {name: value for name, value in first.items() if name not in _OF_WEIGHTS}
        merged["other_teachers"] = [merge(shared, each) if isinstance(each, Mapping) else each for each in others]
    return _checked(merged, "")


def _checked(settings: object, preface: str) -> Recipe:
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(preface + explain(error)) from error
