"""Device, precision, threads and allocator: all settings of the machine that concern computing."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Set
from contextlib import AbstractContextManager
from typing import Annotated, Any, Literal

# cuBLAS reads this when its first handle is created; without it deterministic matrix products raise an error.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from pydantic import Field

from cudd_core import GPU_NUMERICS_VERSION
from cudd_core.compute.cpu.kernels import use_cpu_kernels
from cudd_core.compute.gpu.adaptive_pool import use_repeatable_pools
from cudd_core.compute.lanes import LANES
from cudd_core.compute.ranks import Ranks
from cudd_core.compute.transfer import upload
from cudd_core.configuration import Configuration, Switch
from cudd_core.errors import ResourceError


class ComputeConfig(Configuration):
    """Where and how a stage computes. All fields but `lanes` enter stage keys, `data_parallel` only of trainings."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="Type of device that the compute-heavy tasks run on.")
    threads: int = Field(1, ge=1, le=256, description="CPU threads per task; part of the stage keys.")
    amp: Literal["off", "bf16"] = Field(
        "off",
        description="Autocast for the networks; losses stay float32. Off: float32 throughout, except that torch uses "
        "TF32 for convolutions on a GPU.",
    )
    convolution: Literal["winograd", "direct"] = Field(
        "winograd",
        description="On a CPU in float32: Winograd F(4×4, 3×3) for 3×3 convolutions, with frozen BatchNorm and a "
        "ConvNet's first level each computed in one pass; or torch's kernels.",
    )
    deterministic: bool = Field(True, description="Use deterministic kernels; off may be faster on a GPU.")
    graphs: Annotated[bool, Switch()] = Field(
        True,
        description="Record steps on a GPU and replay them as CUDA graphs; off: the same results under other keys.",
    )
    lanes: int = Field(
        1,
        ge=1,
        le=LANES,
        description="Tasks at a time on each GPU, for networks too small to fill it; results and keys stay the same.",
    )
    data_parallel: Annotated[int, Switch()] = Field(
        1, ge=1, le=64, description="Processes that share each training, each on a GPU or on `threads` CPU threads."
    )

    def identity(self, read: Set[str] | None = None, unread: Set[str] = frozenset()) -> dict[str, Any]:
        """See `Configuration.identity`. On a GPU, the version of what only a GPU computes is part of it."""
        held = super().identity(read, unread)
        return held | {"gpu_numerics": GPU_NUMERICS_VERSION} if self.device == "cuda" else held


_SWITCH_SECONDS = 1e-4
"""How long a thread may keep Python's global lock while another waits for it. A step calls hundreds of short
operations; with Python's default of 5 ms, two threads training side by side spent almost 5 % of their time waiting for
each other (docs/performance.md)."""


class Runtime:
    """A configured device. Make one per task, in the thread that computes.

    `indices`: the GPUs it may use; it computes on the first (default: 0), and results do not depend on them. `ranks`:
    the processes that train networks together, of which this is one; by default it is alone.
    """

    def __init__(self, config: ComputeConfig, *indices: int, ranks: Ranks | None = None) -> None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ResourceError(
                "compute.device = cuda, but this machine has no usable CUDA device. "
                "Set compute.device=cpu, or run where `nvidia-smi` lists a GPU."
            )
        keep_freed_memory()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self.config = config
        self.indices = indices or (0,)
        self.ranks = ranks or Ranks()
        cuda = config.device == "cuda"
        self.device = torch.device(config.device, self.indices[0]) if cuda else torch.device(config.device)
        if torch.get_num_threads() != config.threads:
            torch.set_num_threads(config.threads)
        torch.backends.cudnn.benchmark = False
        # `use_deterministic_algorithms` does the same, but first imports torch's compiler, which takes seconds.
        torch.set_deterministic_debug_mode("error" if config.deterministic else "default")
        # That mode also fills every new tensor, to guard against reading uninitialised memory; nothing here does that.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def autocast(self) -> AbstractContextManager[object]:
        """Return a context that autocasts to bfloat16 if configured, and otherwise does nothing."""
        if self.config.amp == "off":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def network(self, network: torch.nn.Module) -> torch.nn.Module:
        """Move a network to the device, channels last, and switch its layers to the configured kernels.

        With bf16 the weights of a frozen network are rounded to bfloat16, so it works only under `autocast`.
        """
        if self.device.type == "cpu" and self.config.convolution == "winograd" and self.config.amp == "off":
            use_cpu_kernels(network)
        if self.device.type == "cuda" and self.config.deterministic:
            use_repeatable_pools(network)
        if self.config.amp == "bf16" and not any(parameter.requires_grad for parameter in network.parameters()):
            _round_weights(network)
        return network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Move float images [n, C, H, W] to the device, channels last."""
        return upload(images, self.device).contiguous(memory_format=torch.channels_last)


def _round_weights(network: torch.nn.Module) -> None:
    """Round constant weights to bfloat16 once, as autocast would at every call."""
    for module in network.modules():
        if type(module) in (torch.nn.Conv2d, torch.nn.Linear):
            module.to(torch.bfloat16)


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory instead of returning it to the system.

    Activations of a batch are tens of megabytes, which glibc otherwise maps and unmaps at every use, so that a
    CPU step spends up to 40 % of its time in page faults (docs/performance.md). This does not change results, and
    does nothing if the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)
    mallopt(mmap_max, 0)
    mallopt(arena_max, 1)
