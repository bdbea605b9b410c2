"""The base of every configuration: immutable, closed to unknown fields, complete with descriptions and bounds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Configuration(BaseModel):
    """A frozen pydantic model that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
