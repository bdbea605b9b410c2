"""Copies from the host to the device that do not wait for work still running on the device."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 16
"""Tensors uploaded together begin at multiples of so many bytes, as Triton compiles a kernel for each alignment."""


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a host tensor on `device`. To a GPU it goes through page-locked memory, so that the host need not wait."""
    if tensor.is_cuda or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_together(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Return contiguous host tensors on `device`, copied together: to a GPU that takes as long as one small copy."""
    assert all(each.is_contiguous() for each in tensors)
    sizes = [-(-each.nbytes // _ALIGNED) * _ALIGNED for each in tensors]
    starts = [0, *accumulate(sizes)]
    page_locked = torch.device(device).type == "cuda"
    block = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=page_locked)
    # NumPy's slices and a bare `as_strided` cost the host a third of what slices of tensors cost.
    memory = block.numpy()
    for each, start in zip(tensors, starts[:-1], strict=True):
        memory[start : start + each.nbytes] = each.numpy().reshape(-1).view(np.uint8)
    block = block.to(device, non_blocking=page_locked)
    return [
        block.view(each.dtype).as_strided(each.shape, each.stride(), start // each.itemsize)
        for each, start in zip(tensors, starts[:-1], strict=True)
    ]
