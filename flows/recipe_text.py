"""Recipes as people write them: in files, and as values of `--set`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, get_origin

import yaml
from pydantic import BaseModel

from cudd_core.errors import ConfigError
from flows.catalogue import Settings

FILE_SUFFIXES = (".yaml", ".yml", ".toml", ".json")

_UNREADABLE = (ValueError, AttributeError, LookupError, RecursionError)
"""What the parsers raise besides their own errors: for a tag that calls a text a number, brackets nested too deep."""


def read_settings(path: Path) -> Settings:
    """Return the settings in a recipe file. Raises ConfigError, with the line, if it cannot be read or parsed."""
    if path.suffix not in FILE_SUFFIXES:
        raise ConfigError(f"{path}: a recipe file ends in {', '.join(FILE_SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such recipe file.") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not a text file (UTF-8 expected).") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        settings = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, Loader=_Loader)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        where = int(found[1]) if found else text.count("\n") + 1
        raise ConfigError(f"{path}, line {where}: not valid TOML ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line(error)}: not valid YAML ({_problem(error)}).") from error
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: not valid {'TOML' if path.suffix == '.toml' else 'YAML'} ({error}).") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}, line 1: a recipe is a list of `key: value` lines, for example `extends: digits`.")
    return settings


def as_yaml(recipe: BaseModel) -> str:
    """Return a recipe in full, as YAML that `cudd distill` reads."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def value_of(key: str, raw: str, kind: Any) -> object:
    """Return the value that `raw` stands for in `--set key=raw`, where the field is annotated as `kind`.

    Raises:
        ConfigError: it is not a YAML value.
    """
    if kind is str:
        return _text(raw)
    try:
        value = yaml.load(raw, Loader=_Loader)
        if get_origin(kind) is tuple and not isinstance(value, list | dict):
            return [yaml.load(part, Loader=_Loader) for part in raw.split(",")] if raw.strip() else []
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: {raw!r} cannot be read as a value ({_problem(error)}).") from error
    except _UNREADABLE as error:
        raise ConfigError(f"--set {key}: {raw!r} cannot be read as a value ({error}).") from error
    return value


def _text(raw: str) -> str:
    """Return a text as written, not as YAML reads it; `null` and `~` are empty, quotes keep spaces at either end."""
    text = raw.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return "" if text in ("null", "~") else text


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's booleans and numbers: `off`, `no` and `none` are words, `5e-4` is a number, `1:30` is not.

    A duplicate key is an error: YAML would silently take the last.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping. Raises ConstructorError for a duplicate key."""
        seen: set[Any] = set()
        for name, _ in node.value:
            key = self.construct_object(name, deep=True)
            if isinstance(key, str):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key} is there twice", name.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ", line 1"


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).splitlines()[0]
