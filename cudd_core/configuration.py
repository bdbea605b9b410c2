"""The base of every configuration: immutable, closed to unknown fields, complete with descriptions and bounds."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from pydantic import BaseModel, ConfigDict


class Switch:
    """Marks a field, `Annotated[kind, Switch()]`, whose default value changes no result.

    A field at its default is left out of `Configuration.identity`. So a recipe that does not use the switch keeps the
    keys it had before the switch existed, and results stored back then are still found.
    """


class Configuration(BaseModel):
    """A frozen pydantic model that rejects unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    def identity(self, read: Set[str] | None = None, unread: Set[str] = frozenset()) -> dict[str, Any]:
        """Return the part of this section that enters a stage key: plain values by name, without switches that are off.

        `read`: the fields to include (default: all); `unread`: fields to leave out.
        """
        off = self.switches_off()
        held: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name not in unread and (read is None or name in read) and not (name in off and value == off[name]):
                held[name] = value.identity() if isinstance(value, Configuration) else value
        return held

    @classmethod
    def switches_off(cls) -> dict[str, Any]:
        """Return every switch of this section by name, with its default, the value that changes nothing."""
        fields = cls.model_fields.items()
        return {name: field.default for name, field in fields if any(isinstance(m, Switch) for m in field.metadata)}
