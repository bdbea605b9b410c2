"""How a stage reports its progress, and how it is told to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Progress = Callable[[float, int, Mapping[str, float]], None]
"""`progress(done, total, metrics)`. It may raise `Cancelled`; stages call it between steps and let that through.

Stages that count epochs also call it within an epoch, with a fractional `done` and without metrics: an epoch of a large
set takes hours, and a run can stop only at its next call. A computation that continues from a checkpoint calls it once
before its first step, with the metric `CONTINUED`.
"""

CONTINUED = "continued"
"""A metric: what the checkpoint had done. Without it, a resumed training could not be told from a quick one."""


def silent(done: float, total: int, metrics: Mapping[str, float]) -> None:
    """Report nothing."""
