"""Faster kernels for networks on a CPU in float32, in place of torch's, which compute layer by layer."""

from __future__ import annotations

from torch import nn

from cudd_core.compute.cpu.winograd import use_winograd


class Fusible(nn.Module):
    """A network or layer that can compute several layers at once."""

    fused = False
    """Whether it does so where possible."""


def use_cpu_kernels(network: nn.Module) -> None:
    """Make `network` compute with fewer products and fewer passes over memory, in place; parameters stay the same."""
    use_winograd(network)
    for module in network.modules():
        if isinstance(module, Fusible):
            module.fused = True
