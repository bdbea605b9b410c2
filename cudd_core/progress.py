"""How a stage tells how far it is, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[float, int, Mapping[str, float]], None]
"""`progress(done, total, metrics)`. It may raise `Cancelled`; stages call it between steps and let it through.

Stages that count epochs call it within them too, with a fraction of an epoch done and without metrics: an epoch of a
large set takes hours, and who stops a run waits for its next call.
"""


def silent(done: float, total: int, metrics: Mapping[str, float]) -> None:
    """Report nothing."""
