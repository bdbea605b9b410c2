"""What of a configuration a stage key holds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cudd_core.configuration import Configuration, Switch


class Inner(Configuration):
    length: int = 3
    twist: Annotated[float, Switch()] = Field(0.0, ge=0)


class Outer(Configuration):
    name: str = "a"
    inner: Inner = Inner()
    mode: Annotated[str, Switch()] = "off"


def test_switches_that_are_off_are_left_out_at_every_depth() -> None:
    assert Outer().identity() == {"name": "a", "inner": {"length": 3}}
    on = Outer(mode="on", inner=Inner(twist=1))
    assert on.identity() == {"name": "a", "inner": {"length": 3, "twist": 1.0}, "mode": "on"}
    assert on.identity() == on.model_dump()


def test_a_switch_set_to_its_default_is_off() -> None:
    assert Outer(mode="off", inner=Inner(twist=0)).identity() == Outer().identity()


def test_only_what_is_read() -> None:
    on = Outer(mode="on")
    assert on.identity(read={"name", "mode"}) == {"name": "a", "mode": "on"}
    assert on.identity(unread={"inner", "mode"}) == {"name": "a"}
    assert on.identity(read={"name", "inner"}, unread={"name"}) == {"inner": {"length": 3}}
