"""Several processes that train one network together: how they divide a batch, and sums over all of them.

Every process makes every whole batch, from the same random streams, and takes some consecutive images of it. With n_r
of the n images in part r, the mean loss of a batch is Σ_r (n_r / n) · (mean loss of part r), and likewise its gradient.
That is what a single process computes, up to the order of sums. Layers that depend on the whole batch need to know of
the other parts: BatchNorm (`models.synced_batchnorm`) and the masks of dropout (`models.stochastic`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """One process's part of a batch of `whole` images: those from `start` to `stop` − 1.

    `weight` in (0, 1]: weight of the mean over the part in the mean over the batch. All parts' weights add up to 1.
    """

    start: int
    stop: int
    whole: int
    weight: float

    def of(self, batch: Tensor) -> Tensor:
        """Return the part's rows of a tensor [n, …]; a scalar is returned as it is."""
        return batch[self.start : self.stop] if batch.dim() and self.stop - self.start < self.whole else batch


def part_of(n: int, rank: int, size: int) -> Part:
    """Return the part of n images that process `rank` of `size` takes.

    A last batch may have fewer images than there are processes. Each of them then takes the whole batch with weight
    1/size: sums over all processes are the same, and no network has to process an empty batch.

    Example:
        >>> [(part.start, part.stop) for part in (part_of(5, rank, 2) for rank in range(2))]
        [(0, 2), (2, 5)]
    """
    if n < size:
        return Part(0, n, n, 1 / size)
    start, stop = n * rank // size, n * (rank + 1) // size
    return Part(start, stop, n, (stop - start) / n)


class Ranks:
    """The processes of a training, as seen by number `rank` of `size`; by default there is only one.

    Several must be connected by torch's default process group. The order of sums depends on `size` alone, and every
    process gets the same bits.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        assert 0 <= rank < size
        self.rank, self.size = rank, size
        self.part = part_of(0, 0, 1)
        """This process's part of the current batch: what `take` returned last."""
        self._weights: dict[tuple[int, torch.device, torch.dtype], Tensor] = {}

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports for all."""
        return self.rank == 0

    def take(self, n: int) -> Part:
        """Begin a batch of n images; return this process's part of it."""
        self.part = part_of(n, self.rank, self.size)
        return self.part

    def weights(self, like: Tensor) -> Tensor:
        """Return the weight of every process's part of this batch, [size], by rank; device and dtype as `like`."""
        kind = (self.part.whole, like.device, like.dtype)
        if kind not in self._weights:
            every = [part_of(self.part.whole, rank, self.size).weight for rank in range(self.size)]
            self._weights[kind] = torch.tensor(every, dtype=like.dtype, device=like.device)
        return self._weights[kind]

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes, in place, and return it; it must be contiguous."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, values: Tensor) -> Tensor:
        """Return the `values` of all processes, [size, …]."""
        if self.size == 1:
            return values[None]
        found = [torch.empty_like(values) for _ in range(self.size)]
        torch.distributed.all_gather(found, values)
        return torch.stack(found)


def sum_gradients(network: nn.Module, ranks: Ranks) -> None:
    """Replace every gradient by its sum over all processes, in one message, since a small message takes as long."""
    if ranks.size == 1:
        return
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    whole = ranks.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    start = 0
    for gradient in gradients:
        gradient.copy_(whole[start : start + gradient.numel()].view_as(gradient))
        start += gradient.numel()


def check_agreement(network: nn.Module, ranks: Ranks) -> None:
    """Assert that all processes hold the same network, by checksums: a difference would silently spoil the result."""
    if ranks.size == 1:
        return
    state = network.state_dict().values()
    own = torch.stack([value.contiguous().reshape(-1).view(torch.uint8).sum(dtype=torch.int64) for value in state])
    every = ranks.gather(own)
    assert bool((every == own).all()), "the processes of a training no longer hold the same network"
