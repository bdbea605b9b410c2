"""From the host to the device, without waiting for what the device still does."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a host tensor on `device`; by way of page-locked memory, from which a GPU copies when it comes to it."""
    if tensor.is_cuda or torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
