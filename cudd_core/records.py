"""What stages pass to each other: frozen records of tensors and plain values.

Shapes: N samples of a data source, n images of a record, K classes, C channels, H × W pixels, E epochs,
s slices (a slice is one image per class), k classes of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cudd_core.returned import empty_images

TIERS = ("right_and_wrong", "right", "wrong", "any", "student_right")
"""Pools that `select` takes images from: R∩W, R\\W, images that both networks get wrong, no pool at all (policies that
use neither network), and images that only the student gets right. Without a student every image is in W."""


@dataclass(frozen=True)
class NetworkSpec:
    """How to rebuild a network and feed it.

    `mean` and `std` (C values each, in units of pixel / 255) are the network's own; `class_names[i]` names its
    i-th output.
    """

    arch: str
    num_classes: int
    channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class NetworkRecord:
    """A trained network: `spec`, `state` (name → tensor, as `nn.Module.state_dict`), `history` (one row per epoch)."""

    spec: NetworkSpec
    state: dict[str, Tensor]
    history: tuple[dict[str, float], ...] = ()

    @classmethod
    def of(cls, network: nn.Module, spec: NetworkSpec, history: Sequence[dict[str, float]]) -> NetworkRecord:
        """Return the record of a network as it is now, on the host."""
        state = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
        return cls(spec, state, tuple(history))


@dataclass(frozen=True)
class Trajectory:
    """One network's parameters over the course of its training on T: what trajectory matching calls an expert.

    `snapshots`: parameter name → [E + 1, …]; row e is the state after e epochs, row 0 before the first. Buffers are not
    included.
    """

    spec: NetworkSpec
    snapshots: dict[str, Tensor]
    history: tuple[dict[str, float], ...] = ()

    def at(self, epoch: int) -> dict[str, Tensor]:
        """Return the parameters after `epoch` epochs, by name."""
        return {name: rows[epoch] for name, rows in self.snapshots.items()}

    def until(self, epoch: int) -> Trajectory:
        """Return a copy of the trajectory up to `epoch`, so that the memory of the rest can be freed."""
        kept = {name: rows[: epoch + 1].clone() for name, rows in self.snapshots.items()}
        return Trajectory(self.spec, kept, self.history[:epoch])


@dataclass(frozen=True)
class Accuracy:
    """A network measured on test images: how many of each class there are, and how many of these it gets right.

    `right`, `images`: int64 [K], in the data's order of classes.
    """

    right: Tensor
    images: Tensor

    @property
    def n(self) -> int:
        """The number of images."""
        return int(self.images.sum())

    @property
    def accuracy(self) -> float:
        """The share of images that are right, in [0, 1]."""
        return int(self.right.sum()) / self.n

    @property
    def by_class(self) -> Tensor:
        """The accuracy on each class, float64 [K] in [0, 1]; NaN for a class without images."""
        return self.right.double() / self.images

    @property
    def balanced(self) -> float:
        """The mean of the accuracies on the classes that have images: every class counts the same."""
        return float(self.by_class.nanmean())


@dataclass(frozen=True)
class Accuracies:
    """Several networks measured on the same `n` images: `values` float64 [m] in [0, 1], in the order asked for."""

    values: Tensor
    n: int


@dataclass(frozen=True)
class Coverage:
    """How sets of images of one class are distributed among its originals in a network's feature space.

    `points`: name of the set → t-SNE coordinates float32 [n, 2], all from one embedding; `originals` come first.
    `scores` float64 [sets, 3], one row per set of `points`: density, coverage (both NaN for the originals themselves),
    homogeneity.
    """

    points: dict[str, Tensor]
    scores: Tensor


@dataclass(frozen=True)
class Verdicts:
    """A network's predictions for samples of one class block.

    `indices` int64 [n]: positions in the source's training split, ascending; `predicted` int32 [n].
    """

    indices: Tensor
    predicted: Tensor

    def correct(self, labels: Tensor) -> Tensor:
        """Return which of N samples are right, bool [N], given their labels, int64 [N]; False if not in `indices`."""
        correct = torch.zeros(len(labels), dtype=torch.bool)
        correct[self.indices] = self.predicted == labels[self.indices]
        return correct


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of the inputs of a network's BatchNorm layers over a pool of `images` images.

    `layers`: `N.mean` and `N.variance` (biased), float32 [c], for layer N in the order of the network's modules.
    """

    layers: dict[str, Tensor]
    images: int

    @staticmethod
    def of(pairs: Sequence[tuple[Tensor, Tensor]], images: int) -> LayerStatistics:
        """Return the record of one (mean, variance) per layer."""
        layers: dict[str, Tensor] = {}
        for n, (mean, variance) in enumerate(pairs):
            layers |= {f"{n}.mean": mean, f"{n}.variance": variance}
        return LayerStatistics(layers, images)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """The inverse of `of`."""
        return [(self.layers[f"{n}.mean"], self.layers[f"{n}.variance"]) for n in range(len(self.layers) // 2)]


@dataclass(frozen=True)
class Features:
    """The inputs of a network's head for samples of one class block.

    `indices` int64 [n]: positions in the source's training split, ascending; `features` float32 [n, d].
    """

    indices: Tensor
    features: Tensor


@dataclass(frozen=True)
class Selection:
    """The originals T_j of one block: `indices`, `tiers` [s, k], slice-major; `tiers` index `TIERS`.

    `classes` [k] are the labels of the block; `first_slice` is the number of the first slice in the whole run.
    """

    classes: Tensor
    first_slice: int
    indices: Tensor
    tiers: Tensor

    def tier_counts(self) -> dict[str, int]:
        """Number of images taken from each tier."""
        return {name: int(counts.sum()) for name, counts in self.tier_counts_by_class().items()}

    def tier_counts_by_class(self) -> dict[str, Tensor]:
        """Number of images of each class, int64 [k], taken from each tier."""
        return {name: (self.tiers == number).sum(0) for number, name in enumerate(TIERS)}


@dataclass(frozen=True)
class Shard:
    """Images of consecutive slices of one block, slice-major.

    `images` uint8 [n, C, H, W]; `labels`, `slices`, `sources` int64 [n] (`sources`: the original's position in the
    training split, -1 if the image was not made from an original); `history`: losses at logged iterations.
    """

    images: Tensor
    labels: Tensor
    slices: Tensor
    sources: Tensor
    curriculum: int
    history: tuple[dict[str, float], ...] = ()


@dataclass(frozen=True)
class SyntheticSet:
    """The synthetic set so far, S_{1:j}, ordered by (slice, label) regardless of blocks and shards.

    `images` uint8 [n, C, H, W]; `labels`, `slices`, `sources`, `curricula` int64 [n].
    """

    images: Tensor
    labels: Tensor
    slices: Tensor
    sources: Tensor
    curricula: Tensor
    class_names: tuple[str, ...]

    @staticmethod
    def assemble(shards: Sequence[Shard], class_names: tuple[str, ...]) -> SyntheticSet:
        """Join shards in canonical order. This takes the memory of the shards and one copy of the set."""
        return SyntheticSet.assemble_emptying(list(shards), class_names)

    @staticmethod
    def assemble_emptying(shards: list[Shard], class_names: tuple[str, ...]) -> SyntheticSet:
        """Join shards in canonical order, and empty the list as they are copied.

        If nothing else refers to them, this takes the memory of the set and, beside it, of one shard.
        """
        labels = torch.cat([shard.labels for shard in shards])
        slices = torch.cat([shard.slices for shard in shards])
        order = torch.argsort(slices * len(class_names) + labels)
        curricula = torch.cat([torch.full_like(shard.labels, shard.curriculum) for shard in shards])
        sources = torch.cat([shard.sources for shard in shards])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        images = empty_images((len(order), *shards[0].images.shape[1:]))
        for places in place.split([len(shard.labels) for shard in shards]):
            images[places] = shards.pop(0).images
        return SyntheticSet(
            images=images,
            labels=labels[order],
            slices=slices[order],
            sources=sources[order],
            curricula=curricula[order],
            class_names=class_names,
        )


@dataclass(frozen=True)
class SoftLabels:
    """Teacher logits of the augmented, mixed batches of epochs first_epoch … first_epoch + E − 1.

    `logits` float16 [E, n, K]: row b of an epoch belongs to the b-th image of that epoch's order
    (`data.replay.Replay.orders`), not to image b.
    """

    logits: Tensor
    first_epoch: int

    @property
    def columns(self) -> dict[str, Tensor]:
        """The tensors by name, as in `PackedLabels`."""
        return {"logits": self.logits}

    @property
    def num_classes(self) -> int:
        """K."""
        return self.logits.shape[-1]


@dataclass(frozen=True)
class PackedLabels:
    """Teacher logits as in `SoftLabels`, in fewer bytes.

    `columns`: name → tensor, as described by `data.label_forms.LabelForm.layout`; the first dimension is the epoch.
    """

    columns: dict[str, Tensor]
    num_classes: int
    first_epoch: int


LabelShard = SoftLabels | PackedLabels
"""Labels of consecutive epochs, in the form in which they are stored."""


@dataclass(frozen=True)
class Pictures:
    """Pictures for a report. `png`: title → the bytes of a PNG file, uint8 [bytes]."""

    png: dict[str, Tensor]

    @staticmethod
    def of(files: Mapping[str, bytes]) -> Pictures:
        """Return the record of PNG files, given as title → bytes."""
        return Pictures({title: torch.frombuffer(bytearray(file), dtype=torch.uint8) for title, file in files.items()})

    def files(self) -> dict[str, bytes]:
        """The inverse of `of`."""
        return {title: data.numpy().tobytes() for title, data in self.png.items()}


Record = (
    NetworkRecord
    | Trajectory
    | Accuracy
    | Accuracies
    | Coverage
    | Verdicts
    | LayerStatistics
    | Selection
    | Shard
    | SyntheticSet
    | LabelShard
    | Pictures
    | Features
)
"""Everything that a stage may return and the store may keep."""
