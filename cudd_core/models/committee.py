"""Several teachers as one network, which answers with the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord, NetworkSpec


class Committee(nn.Module):
    """Networks that know the same classes and take the same images; `names`, one for each, are used in messages.

    Whatever concerns a single network, such as its loss or its layers, must go through `members`: hooks on the whole
    committee would mix up the layers of different networks. A committee of one answers bit for bit as its member does.
    """

    def __init__(self, members: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        assert len(members) == len(names) > 0
        self.members, self.names = nn.ModuleList(members), tuple(names)

    def answers(self, images: Tensor) -> Tensor:
        """Return the logits of each member, [m, n, K], at least float32, for images [n, C, H, W]."""
        answers = [member(images) for member in self.members]
        logits = torch.stack(answers) if len(answers) > 1 else answers[0][None]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of the members' logits, [n, K]."""
        return agreed(self.answers(images))


def agreed(answers: Tensor) -> Tensor:
    """Return the joint answer of a committee, [n, K]: the mean of its members' logits, [m, n, K]."""
    # The mean of a single answer would turn −0 into +0.
    return answers.mean(0) if len(answers) > 1 else answers[0]


class Rescaled(nn.Module):
    """A network that takes images [n, C, H, W] in another's normalised space and first converts them to its own."""

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, own: NetworkSpec, given: NetworkSpec) -> None:
        super().__init__()
        self.network = network
        own_mean, own_std, mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (own.mean, own.std, given.mean, given.std)
        )
        self.register_buffer("scale", (std / own_std).float(), persistent=False)
        self.register_buffer("shift", ((mean - own_mean) / own_std).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's logits [n, K]."""
        logits: Tensor = self.network(images * self.scale + self.shift)
        return logits


def restore_committee(records: Sequence[NetworkRecord]) -> Committee:
    """Return the recorded networks, frozen and in eval mode, as one that takes images in the first's normalised space.

    Crops, flips, rolls and mixing are weighted means of pixels, so it makes no difference whether images are normalised
    before or after them: every network sees what it would see alone, up to rounding.
    """
    given = records[0].spec
    members = [_in_space_of(given, restore_network(record), record.spec) for record in records]
    return Committee(members, [record.spec.arch for record in records]).eval()


def _in_space_of(given: NetworkSpec, network: nn.Module, own: NetworkSpec) -> nn.Module:
    alike = (own.mean, own.std) == (given.mean, given.std)
    return network if alike else Rescaled(network, own, given)
