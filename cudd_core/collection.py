"""Keep Python's garbage collector from running for a while."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_inside: list[bool] = []
"""For each thread inside `uncollected`, whether collection was enabled when the first of them came."""


@contextmanager
def uncollected() -> Iterator[None]:
    """Disable garbage collection in this process. The last of several threads to leave restores what was before."""
    with _lock:
        _inside.append(_inside[0] if _inside else gc.isenabled())
        gc.disable()
    try:
        yield
    finally:
        with _lock:
            if _inside.pop() and not _inside:
                gc.enable()
