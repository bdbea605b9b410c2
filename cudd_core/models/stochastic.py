"""Dropout and stochastic depth that draw from random streams of their own.

torch's layers draw from the global generator, which tasks running at the same time share, so every run would train a
different network. The layers here draw their masks on the host, from (the network's seed, the layer's name, the epoch),
so training repeats bit for bit whatever else is running, on any device, and after any kill. Processes that share a
batch draw the masks of all its images and use their own part.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from cudd_core.compute.ranks import Ranks
from cudd_core.compute.transfer import upload
from cudd_core.errors import ModelError
from cudd_core.seeding import host_rng

Kind = Literal["element", "channel", "row", "batch"]
"""What is dropped together: single elements, a channel of an image, an image's whole branch, or the branch for all
images."""


class SeededDrop(nn.Module):
    """In training: x · mask, divided by 1 − p if `scaled`. In eval mode: x.

    The mask keeps each part of x [n, …] with probability 1 − p.
    """

    def __init__(self, p: float, kind: Kind, scaled: bool, seed: int, name: str) -> None:
        super().__init__()
        self.p, self.kind, self.scaled, self.seed, self.name = p, kind, scaled, seed, name
        self.ranks = Ranks()
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Move to the start of an epoch's stream."""
        self._rng = host_rng(self.seed, "drop", self.name, epoch)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` [n, …], in training with parts dropped."""
        if not self.training:
            return x
        whole = {"element": x.dim(), "channel": 2, "row": 1, "batch": 0}[self.kind]
        shape = (*x.shape[:whole], *(1,) * (x.dim() - whole))
        if self.ranks.size > 1 and whole:
            kept = self._part_of_mask(shape)
        else:
            kept = self._rng.random(shape, dtype=np.float32) >= self.p
        scale = 1 / (1 - self.p) if self.scaled and self.p < 1 else 1.0
        return x * upload(torch.from_numpy(kept), x.device).to(x.dtype) * scale

    def _part_of_mask(self, shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Draw for all images of the batch; return the rows of this process's images, which may have several each."""
        part = self.ranks.part
        each, rest = divmod(shape[0], part.stop - part.start)
        assert not rest, f"{self.name}: the rows of its input are not those of images"
        kept = self._rng.random((part.whole * each, *shape[1:]), dtype=np.float32) >= self.p
        return kept[part.start * each : part.stop * each]


def seed_stochastic_layers(network: nn.Module, seed: int, arch: str) -> None:
    """Replace the layers of `network` that would draw from the global generator, in place.

    Layers with probability 0 stay as they are.

    Raises:
        ModelError: a layer draws in a way that is not known here.
    """
    for name, module in list(network.named_modules()):
        found = _read(module, arch)
        if found is not None:
            network.set_submodule(name, SeededDrop(*found, seed, name))


def is_stochastic(network: nn.Module) -> bool:
    """Return whether a layer of the network draws in training."""
    return any(isinstance(module, SeededDrop) for module in network.modules())


def divide_stochastic_layers(network: nn.Module, ranks: Ranks) -> None:
    """Make every stochastic layer draw for the batch of all `ranks` and use only this process's part."""
    for module in network.modules():
        if isinstance(module, SeededDrop):
            module.ranks = ranks


def begin_epoch(network: nn.Module, epoch: int) -> None:
    """Move every stochastic layer to the start of its stream for `epoch`."""
    for module in network.modules():
        if isinstance(module, SeededDrop):
            module.begin_epoch(epoch)


def _read(module: nn.Module, arch: str) -> tuple[float, Kind, bool] | None:
    """Return (p, kind, scaled) of a layer that draws in training, None for any other."""
    kind = type(module).__name__
    if kind == "StochasticDepth":  # torchvision's; importing it to compare would cost seconds
        return (float(module.p), "row" if module.mode == "row" else "batch", True) if module.p else None  # type: ignore[arg-type]
    if kind == "DropPath":  # timm's
        rate, scaled = getattr(module, "drop_prob", None), getattr(module, "scale_by_keep", True)
        return (float(rate), "row", bool(scaled)) if rate else None
    if type(module) is nn.Dropout:
        return (module.p, "element", True) if module.p else None
    if isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d):
        return (module.p, "channel", True) if module.p else None
    draws = isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)
    if (
        draws
        or (isinstance(module, _DropoutNd) and module.p)
        or (isinstance(module, nn.MultiheadAttention) and module.dropout)
    ):
        raise ModelError(
            f"{arch} has a layer {kind} that draws at random in training, in a way that could not be repeated. "
            "Choose another architecture (`cudd archs`)."
        )
    return None
