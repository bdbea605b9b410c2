"""Lanes of a GPU: streams on which threads compute side by side, where one thread alone does not fill the GPU.

A batch of 16 small images leaves a large GPU half idle; networks that train at the same time, each in its own lane,
fill it. Lanes share nothing: torch's libraries have one workspace per stream, and a thread records its graphs on its
lane's second stream. So every bit is the same as if the thread ran alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LANES = 10
"""Number of lanes per GPU, with three streams each. torch has 32 streams and hands them out in turn: with more lanes,
one lane's kernels would become part of another's recording."""

_LOCK = threading.Lock()
_COMPUTING: dict[tuple[int, int], Any] = {}
_RECORDING: dict[tuple[int, int], Any] = {}
_ASIDE: dict[tuple[int, int], Any] = {}


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


def aside(compute: Callable[[], Tensor], needed: Tensor) -> Callable[[], Tensor]:
    """Start `compute`, which reads `needed`; call what is returned for its result.

    In a recording, its kernels and those of its gradient run beside whatever is recorded before that call: one network
    beside another, where a batch does not fill the GPU. The bits are those of computing at once, as a GPU does outside
    of recordings. A CPU computes when it is asked for the result.
    """
    if not needed.is_cuda:
        return compute
    if not torch.cuda.is_current_stream_capturing():
        result = compute()
        return lambda: result
    here = torch.cuda.current_stream()
    with _LOCK:
        there = _stream(_ASIDE, (torch.cuda.current_device(), here.cuda_stream))
    there.wait_stream(here)
    # What one stream frees must not be overwritten while the other still reads it.
    needed.record_stream(there)
    with torch.cuda.stream(there):
        beside = compute()

    def waited() -> Tensor:
        here.wait_stream(there)
        beside.record_stream(here)
        return beside

    return waited


def rejoin() -> None:
    """Join what `aside` began in a recording that has failed since: with an open branch it could not even be ended."""
    here = torch.cuda.current_stream()
    there = _ASIDE.get((torch.cuda.current_device(), here.cuda_stream))
    if there is None:
        return
    with torch.cuda.stream(there):
        begun = torch.cuda.is_current_stream_capturing()
    if begun:
        here.wait_stream(there)


def _stream(streams: dict[tuple[int, int], Any], key: tuple[int, int]) -> Any:
    if key not in streams:
        streams[key] = torch.cuda.Stream(key[0])
    return streams[key]
