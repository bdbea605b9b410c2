"""How often a checkpoint is worth its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

MOST = 0.02
"""The share of the time that checkpoints may take."""


class Pace:
    """Says when a checkpoint is due: at once, and then whenever the last one is `MOST` of the time since.

    A step that is replayed as a CUDA graph takes less than a millisecond, a checkpoint of its network up to half a
    second. On a CPU a step takes longer than a small network's checkpoint, which is then always due. So a kill costs
    fifty times what saving takes, or what lies between two occasions to save. Results do not depend on when that is.
    """

    def __init__(self) -> None:
        self._took, self._ended = 0.0, monotonic()

    def due(self) -> bool:
        """Whether to save now."""
        return self._took * (1 - MOST) <= MOST * (monotonic() - self._ended)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure the body, which saves."""
        begun = monotonic()
        yield
        self._ended = monotonic()
        self._took = self._ended - begun
