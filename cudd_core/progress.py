"""How a stage tells how far it is, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[int, int, Mapping[str, float]], None]
"""`progress(done, total, metrics)`. It may raise `Cancelled`; stages call it between steps and let it through."""


def silent(done: int, total: int, metrics: Mapping[str, float]) -> None:
    """Report nothing."""
