"""The augmented, mixed batches that labels are made for, and that training sees again bit for bit.

Everything is derived from (seed, epoch, step), so nothing but the seed is stored. Relabelling and training walk the
same `Replay`, which is what makes stored logits belong to the pixels they were computed on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from cudd_core.configuration import Configuration, Switch
from cudd_core.data.augment import Crops, CropScale, Mix, Normalizer, blend, mix_masks, sample_crops, sample_mix
from cudd_core.records import NetworkSpec, SyntheticSet
from cudd_core.runtime import Runtime
from cudd_core.seeding import host_rng
from cudd_core.transfer import upload


class ReplayConfig(Configuration):
    """Augmentation shared by relabelling and by training on the labels."""

    crop_scale: CropScale = Field((0.08, 1.0), description="Area range of the random resized crop.")
    flip: bool = Field(True, description="Mirror half of the images (off for digits and text).")
    mix: Literal["cutmix", "mixup", "none"] = Field("cutmix", description="Mixing of every batch.")
    mix_alpha: float = Field(1.0, gt=0, description="Beta(α, α) of the mixing ratio.")
    reuse: Annotated[int, Switch()] = Field(
        1, ge=1, description="Times that an epoch's augmentation and labels are used; the bytes fall by this factor."
    )

    def distinct_epochs(self, epochs: int) -> int:
        """Return E = ⌈epochs / reuse⌉: training epoch e sees what epoch e mod E saw, in the same order."""
        return -(-epochs // self.reuse)


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Return the permutation of n images that an epoch walks, int64 [n]."""
    return torch.from_numpy(host_rng(seed, "replay", epoch).permutation(n))


def draw_step(config: ReplayConfig, seed: int, epoch: int, step: int, n: int, size: int) -> tuple[Crops, Mix | None]:
    """Draw how the n size × size images of one batch are cropped, mirrored and mixed."""
    rng = host_rng(seed, "replay", epoch, step)
    crops = sample_crops(n, size, config.crop_scale, config.flip, rng)
    return crops, sample_mix(config.mix, n, size, config.mix_alpha, rng)


# Networks that are compared see the same views, and so did the teacher. On a GPU, where drawing takes as long as a
# small network's step, a run draws them once. On a CPU it is a hundredth of a step, and thousands of small tensors that
# stay among the activations would keep the heap from using its memory again: gigabytes in a run.
_draw_once = functools.lru_cache(maxsize=8192)(draw_step)


@dataclass(frozen=True)
class Classes:
    """The classes of one batch of b mixed images, on the device.

    `labels` and `partners` int64 [b]: of an image's own pixels and of those mixed in; `share` in [0, 1], a float64
    scalar: how much of it is its own, by area.
    """

    labels: Tensor
    partners: Tensor
    share: Tensor


@dataclass(frozen=True)
class Targets:
    """What training on one batch of b images aims at, on the device.

    `logits` float16 [b, K]: the teacher's. The rest: as `Classes`.
    """

    logits: Tensor
    labels: Tensor
    partners: Tensor
    share: Tensor


@dataclass(frozen=True)
class Views:
    """Consecutive batches of an epoch, made together: n images in s batches, the first being batch `first`.

    `images` float32 [n, C, H, W] in the teacher's normalised space, channels last; `places`: the rows of each batch;
    `labels`, `partners` int64 [n] and `shares` float64 [s]: as `Classes`. All on the device.
    """

    first: int
    images: Tensor
    places: Sequence[slice]
    labels: Tensor
    partners: Tensor
    shares: Tensor

    def batches(self) -> Iterator[tuple[Tensor, Classes]]:
        """Yield the inputs of every batch and their classes."""
        for place, share in zip(self.places, self.shares.unbind(), strict=True):
            yield self.images[place], Classes(self.labels[place], self.partners[place], share)


_VALUES_TOGETHER = {"cpu": 2**19, "cuda": 2**22}
"""Values of images that are made, and labelled, at the same time: 170 images of 32 px on a CPU, where more gain
nothing, or 1,365, which keep a GPU busy."""


def batches_together(batch_size: int, values: int, device: str) -> int:
    """Return how many whole batches of images of `values` values are made, and labelled, at the same time."""
    return max(1, _VALUES_TOGETHER[device] // (batch_size * values))


class Replay:
    """Batches of a synthetic set, by epoch and step; the set stays on the device as uint8."""

    def __init__(
        self,
        synthetic: SyntheticSet,
        spec: NetworkSpec,
        config: ReplayConfig,
        batch_size: int,
        seed: int,
        runtime: Runtime,
    ) -> None:
        self.config, self.seed, self.runtime = config, seed, runtime
        self.pixels, self.labels = synthetic.images.to(runtime.device), synthetic.labels.to(runtime.device)
        self.normalizer = Normalizer(spec.mean, spec.std, runtime.device)
        self.bounds = batch_bounds(len(synthetic.labels), batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches."""
        return len(self.bounds)

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of images that the epoch walks, int64 [n]."""
        return epoch_order(self.seed, epoch, len(self.pixels))

    def views(self, epoch: int) -> Iterator[Views]:
        """Yield the epoch's batches, as many together as fit."""
        order = self.order(epoch)
        largest = max(stop - start for start, stop in self.bounds)
        together = batches_together(largest, self.pixels[0].numel(), self.runtime.device.type)
        for first in range(0, len(self.bounds), together):
            yield self._made_together(epoch, order, range(first, min(first + together, len(self.bounds))))

    def _made_together(self, epoch: int, order: Tensor, steps: range) -> Views:
        """Draw batch by batch; compute for all of them at once."""
        size, device = self.pixels.shape[-1], self.pixels.device
        bounds = self.bounds[steps.start : steps.stop]
        begin = bounds[0][0]
        places = [slice(start - begin, stop - begin) for start, stop in bounds]
        draw = _draw_once if device.type == "cuda" else draw_step
        draws = [
            draw(self.config, self.seed, epoch, step, stop - start, size)
            for step, (start, stop) in zip(steps, bounds, strict=True)
        ]
        chosen = upload(order[begin : bounds[-1][1]], device)
        crops, labels = Crops.joined([crops for crops, _ in draws]), self.labels[chosen]
        images = crops.warp(size, device)(self.normalizer(self.pixels[chosen]))
        mixes = [mix for _, mix in draws if mix is not None]
        partners, shares = labels, torch.ones(len(steps), dtype=torch.float64, device=device)
        if mixes:
            partner = torch.cat([mix.partner + place.start for mix, place in zip(mixes, places, strict=True)])
            batch = torch.arange(len(mixes)).repeat_interleave(torch.tensor([len(mix.partner) for mix in mixes]))
            partner, batch = upload(torch.stack([partner, batch]), device).unbind()
            images = blend(images, images[partner], mix_masks(mixes, device)[batch])
            partners = labels[partner]
            shares = upload(torch.tensor([mix.share for mix in mixes], dtype=torch.float64), device)
        images = images.contiguous(memory_format=torch.channels_last)
        return Views(steps.start, images, places, labels, partners, shares)


class Labels(Protocol):
    """Where the labels of a replay come from."""

    def of(self, epoch: int, views: Views) -> Iterable[Tensor]:
        """Give the teacher's logits of every batch of the epoch's `views`: float16 [b, K] on their device."""
        ...


class LabelledReplay:
    """A `Replay` with labels: what `training.fit` walks. Of its epochs the first `distinct` ones are repeated."""

    def __init__(self, replay: Replay, labels: Labels, distinct: int) -> None:
        self.replay, self.labels, self.distinct = replay, labels, distinct
        self.steps_per_epoch = replay.steps_per_epoch

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Targets]]:
        """Yield (inputs, targets) of one epoch."""
        number %= self.distinct
        for views in self.replay.views(number):
            for (images, classes), logits in zip(views.batches(), self.labels.of(number, views), strict=True):
                yield images, Targets(logits, classes.labels, classes.partners, classes.share)


class ClassReplay:
    """A `Replay` with the classes of its images alone, which needs no stored labels.

    `distinct`: training epoch e sees what epoch e mod `distinct` saw, as where labels are used again.
    """

    def __init__(self, replay: Replay, distinct: int) -> None:
        self.replay, self.distinct = replay, distinct
        self.steps_per_epoch = replay.steps_per_epoch

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Classes]]:
        """Yield (inputs, classes) of one epoch."""
        for views in self.replay.views(number % self.distinct):
            yield from views.batches()


def batch_bounds(n: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut 0..n into batches; a last batch of one image joins the one before it, since BatchNorm cannot train on one."""
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True))
