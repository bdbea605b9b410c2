"""The canonical text of a value, from which keys and digests are computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from pydantic import BaseModel


def canonical_json(value: object) -> str:
    """Return the canonical JSON of a value: sorted keys, no spaces, ASCII, tuples as lists, the shortest exact floats.

    Equal numbers give equal text (1 and 1.0, 0.0 and -0.0), booleans do not count as numbers, and NaN and the
    infinities are written as `{"float": "nan"}`, `{"float": "inf"}`, `{"float": "-inf"}`. Configurations are written as
    their fields.

    Raises:
        TypeError: the value is, or contains, something other than None, bool, int, float, str, list, tuple,
            configuration or a mapping with text keys.

    Example:
        >>> canonical_json({"b": (1, 2.0), "a": 0.1})
        '{"a":0.1,"b":[1,2]}'
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: object) -> object:
    # Exact types: a NumPy scalar or an enum member would otherwise pass as float or str and read back as another type.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if value.is_integer():
            return int(value)
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, BaseModel):
        return {name: _canonical(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TypeError(f"keys of a canonical mapping must be text, not {sorted(map(repr, value))}")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    raise TypeError(f"{value!r} ({type(value).__name__}) has no canonical JSON form")
