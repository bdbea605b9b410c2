"""Lanes of a GPU: streams on which threads compute side by side, where one thread alone does not fill the GPU.

A batch of 16 small images leaves a large GPU half idle; networks that train at the same time, each in its own lane,
fill it. Lanes share nothing: torch's libraries have one workspace per stream, and a thread records its graphs on its
lane's second stream. So every bit is the same as if the thread ran alone.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

LANES = 12
"""Number of lanes per GPU, with two streams each. torch has 32 streams and hands them out in turn: with more lanes, one
lane's kernels would become part of another's recording."""

_LOCK = threading.Lock()
_COMPUTING: dict[tuple[int, int], Any] = {}
_RECORDING: dict[tuple[int, int], Any] = {}


@contextmanager
def lane(number: int, device: int) -> Iterator[None]:
    """Run this thread's work on GPU `device` in the lane `number`, modulo `LANES`.

    Only this thread may use tensors made there, until they have been copied to the host. Threads outside lanes share
    the GPU's default stream, on which operations run one after another.
    """
    with _LOCK:
        stream = _stream(_COMPUTING, (device, number % LANES))
    with torch.cuda.stream(stream):
        yield


def recording_stream() -> Any:
    """Return the stream for recording graphs that are replayed on the current stream, while other lanes replay theirs.

    Nothing computes on it. One recording stream for all lanes would not do: matrix products that are recorded on the
    same stream share a workspace, and overwrite each other's when graphs run at the same time (docs/performance.md).
    """
    device = torch.cuda.current_device()
    with _LOCK:
        return _stream(_RECORDING, (device, torch.cuda.current_stream().cuda_stream))


def _stream(streams: dict[tuple[int, int], Any], key: tuple[int, int]) -> Any:
    if key not in streams:
        streams[key] = torch.cuda.Stream(key[0])
    return streams[key]
