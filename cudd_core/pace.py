"""When a checkpoint is worth the time that saving it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

MOST = 0.02
"""The largest share of the time that checkpoints may take."""


class Pace:
    """Decides when a checkpoint is due: at once, then whenever the last save took at most `MOST` of the time since.

    A step that is replayed as a CUDA graph takes less than a millisecond, a checkpoint of its network up to half a
    second. On a CPU a step takes longer than saving a small network, so a checkpoint is always due. A kill thus costs
    about fifty times the duration of a save, or the work between two opportunities to save if that is more. Results do
    not depend on when checkpoints are saved.
    """

    def __init__(self) -> None:
        self._took, self._ended = 0.0, monotonic()

    def due(self) -> bool:
        """Whether to save now."""
        return self._took * (1 - MOST) <= MOST * (monotonic() - self._ended)

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Time the body, which saves a checkpoint."""
        begun = monotonic()
        yield
        self._ended = monotonic()
        self._took = self._ended - begun
