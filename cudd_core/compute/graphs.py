"""Steps with a single launch: on a GPU, a function of tensors is recorded as a CUDA graph and then replayed.

A step of a small network consists of hundreds of kernels of microseconds each, which Python takes longer to launch than
the GPU to run. A graph launches them all at once. The kernels are the same, and so are the results, bit for bit.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from cudd_core.collection import uncollected
from cudd_core.compute.lanes import recording_stream, rejoin

_log = logging.getLogger("cudd.graphs")

Step = Callable[..., tuple[Tensor, ...]]
"""Tensors in, tensors out. Tensors that it changes in place (weights, an optimiser's state) must stay at the same
address; it must not read values from the device or draw random numbers."""

_EAGER = 3
"""Number of steps that run eagerly before one is recorded: in them state is created and libraries choose kernels."""

MOST_VALUES = 2**22
"""Values in a batch of images above which a step is not worth recording: kernels then take longer than their launches,
and a graph keeps the memory of its activations to itself. It is 1,365 images of 32 px, or 27 of 224 px."""

_SHAPES = 4
"""Most input shapes that are recorded: a training has two, full batches and the smaller last one."""

_ONE_AT_A_TIME = threading.Lock()
"""Held while a thread records, and for the moment in which a graph is launched: every graph is tied to torch's random
generators, which cannot serve both at the same time."""


class Recorded:
    """`step`, recorded for each shape of its inputs after a few eager calls, if `enabled` and on a GPU.

    Steps whose inputs have more than `most` values in all always run eagerly.

    Outputs are overwritten by the next call: copy what you keep. A step that cannot be recorded runs eagerly, with a
    warning. Threads that share a GPU must stay on its default stream, or each in its own lane
    (`cudd_core.compute.lanes`), in which it makes all calls.
    """

    def __init__(self, step: Step, device: torch.device, enabled: bool, most: int = MOST_VALUES) -> None:
        self._step, self._device, self._most = step, device, most
        self._enabled = enabled and device.type == "cuda"
        self._seen: dict[_Shape, int] = {}
        self._recordings: dict[_Shape, _Recording] = {}

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the step."""
        if not self._enabled or sum(each.numel() for each in inputs) > self._most:
            return self._step(*inputs)
        shape = tuple((each.shape, each.stride(), each.dtype) for each in inputs)
        recording = self._recordings.get(shape)
        if recording is None:
            seen = self._seen[shape] = self._seen.get(shape, 0) + 1
            if seen <= _EAGER or len(self._recordings) >= _SHAPES:
                return self._step(*inputs)
            try:
                # Returns to the current stream afterwards, even after an error.
                with torch.cuda.stream(torch.cuda.current_stream(self._device)):
                    recording = self._recordings[shape] = _Recording(self._step, inputs, self._device)
            except RuntimeError as error:
                _log.warning("a step runs without a CUDA graph, which is slower: it cannot be recorded (%s)", error)
                self._enabled = False
                return self._step(*inputs)
        return recording(inputs)

    def kept(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run the step; return outputs that later calls do not overwrite."""
        outputs = self(*inputs)
        return tuple(each.clone() for each in outputs) if self._recordings else outputs


_Shape = tuple[tuple[torch.Size, tuple[int, ...], torch.dtype], ...]


class _Recording:
    """One graph, with its own memory for its inputs."""

    def __init__(self, step: Step, inputs: tuple[Tensor, ...], device: torch.device) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads may continue to compute meanwhile. A collection could free an old graph, which
        # would abort the recording.
        with torch.cuda.device(device), _ONE_AT_A_TIME, uncollected():
            self._inputs = tuple(each.clone() for each in inputs)
            with torch.cuda.graph(self._graph, stream=recording_stream(), capture_error_mode="thread_local"):
                try:
                    self._outputs = step(*self._inputs)
                except BaseException:
                    rejoin()
                    raise

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if inputs:
            torch._foreach_copy_(self._inputs, inputs)
        with _ONE_AT_A_TIME:
            self._graph.replay()
        return self._outputs
