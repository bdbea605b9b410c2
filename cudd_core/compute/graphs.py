"""Steps that are launched once: on a GPU, a function of tensors is recorded as a CUDA graph, and then replayed.

A step of a small network is hundreds of kernels of microseconds, which take Python longer to launch than the GPU to
run. A graph launches them all at once. The kernels are the same, and so are the results, bit for bit.
"""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cudd_core.compute.lanes import recording_stream

_log = logging.getLogger("cudd.graphs")

Step = Callable[..., tuple[Tensor, ...]]
"""Tensors in, tensors out. What it changes in place (weights, an optimiser's state) are tensors that stay where they
are; it reads nothing from the device and draws nothing."""

_EAGER = 3
"""Steps that run as they are before one is recorded: state is made in the first, libraries choose their kernels."""

MOST_VALUES = 2**22
"""Values in a batch of images above which a step is not worth recording: kernels then take longer than their launches,
and a graph keeps its activations to itself. 1,365 images of 32 px, 27 of 224 px."""

_SHAPES = 4
"""Shapes of inputs that are recorded: a training has two, its batches and the smaller last one."""

_ONE_AT_A_TIME = threading.Lock()
"""Held while a thread records, and for the moment in which a graph is launched: torch's random generators, which every
graph knows, cannot do both."""


class Recorded:
    """`step`, recorded for every shape of its inputs after a few calls that run as they are, if it is `enabled`.

    Inputs of more than `most` values are left alone.

    Outputs are overwritten by the next call: copy what is kept. A step that cannot be recorded runs as it is, with a
    warning. Threads that share a GPU stay on its default stream, or each in a lane of its own
    (`cudd_core.compute.lanes`), in which the step is always made.
    """

    def __init__(self, step: Step, device: torch.device, enabled: bool, most: int = MOST_VALUES) -> None:
        self._step, self._device, self._most = step, device, most
        self._enabled = enabled and device.type == "cuda"
        self._seen: dict[_Shape, int] = {}
        self._recordings: dict[_Shape, _Recording] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Make the step."""
        if not self._enabled or sum(each.numel() for each in inputs) > self._most:
            return self._step(*inputs)
        shape = tuple((each.shape, each.stride(), each.dtype) for each in inputs)
        recording = self._recordings.get(shape)
        if recording is None:
            seen = self._seen[shape] = self._seen.get(shape, 0) + 1
            if seen <= _EAGER or len(self._recordings) >= _SHAPES:
                return self._step(*inputs)
            try:
                # Back to the stream that it was on, also after an error.
                with torch.cuda.stream(torch.cuda.current_stream(self._device)):
                    recording = self._recordings[shape] = _Recording(self._step, inputs, self._device)
            except RuntimeError as error:
                _log.warning("a step runs without a CUDA graph, which is slower: it cannot be recorded (%s)", error)
                self._enabled = False
                return self._step(*inputs)
        return recording(inputs)

    def kept(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Make the step; return outputs that later calls leave alone."""
        outputs = self(*inputs)
        return tuple(each.clone() for each in outputs) if self._recordings else outputs


_Shape = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]


class _Recording:
    """One graph, with memory of its own for its inputs."""

    def __init__(self, step: Step, inputs: tuple[Tensor, ...], device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on computing meanwhile: "thread_local".
        with torch.cuda.device(device), _ONE_AT_A_TIME, _no_garbage_collected():
            self._inputs = tuple(each.clone() for each in inputs)
            with torch.cuda.graph(self._graph, stream=recording_stream(), capture_error_mode="thread_local"):
                self._outputs = step(*self._inputs)

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if inputs:
            torch._foreach_copy_(self._inputs, inputs)
        with _ONE_AT_A_TIME:
            self._graph.replay()
        return self._outputs


@contextmanager
def _no_garbage_collected() -> Iterator[None]:
    """Collect none while this thread records: an old graph that died in it would end the recording."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
