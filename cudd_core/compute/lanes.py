"""Lanes of a GPU: streams on which threads compute side by side, where one alone does not fill it.

A batch of 16 small images keeps a large GPU half idle; networks that are trained at the same time, each in a lane of
its own, fill it. They share nothing: torch's libraries have a workspace for each stream, and what a thread records as
a graph, it records on its lane's second stream. So every bit is that of the thread alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LANES = 12
"""Lanes of one GPU, with two streams each. torch has 32 and gives them out in turns: beyond that, one lane's kernels
would become part of another's recording."""

_LOCK = threading.Lock()
_COMPUTING: dict[tuple[int, int], Any] = {}
_RECORDING: dict[tuple[int, int], Any] = {}


@contextmanager
def lane(number: int, device: int) -> Iterator[None]:
    """Let this thread's work on GPU `device` go to its lane of that number, modulo `LANES`.

    What it makes there is for this thread alone, until it has been copied to the host. Threads that are in no lane
    share the GPU's default stream, on which one thing happens after another.
    """
    with _LOCK:
        stream = _stream(_COMPUTING, (device, number % LANES))
    with torch.cuda.stream(stream):
        yield


def recording_stream() -> Any:
    """Return the stream to record graphs on that are replayed on the current stream, and beside those of others.

    It is none on which anything computes. One for all lanes would not do: of what is recorded on one stream, products
    of matrices share a workspace, and overwrite each other's when graphs run at the same time (docs/performance.md).
    """
    device = torch.cuda.current_device()
    with _LOCK:
        return _stream(_RECORDING, (device, torch.cuda.current_stream().cuda_stream))


def _stream(streams: dict[tuple[int, int], Any], key: tuple[int, int]) -> Any:
    if key not in streams:
        streams[key] = torch.cuda.Stream(key[0])
    return streams[key]
