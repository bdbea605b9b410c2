"""The augmented, mixed batches that labels are made for, and that training sees again bit for bit.

Everything is derived from (seed, epoch, step), so only the seed is stored. Relabelling and training go through the same
`Replay`, which ensures that stored logits match the pixels they were computed on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from cudd_core.compute.gpu.kernels import gpu_kernels
from cudd_core.compute.runtime import Runtime
from cudd_core.compute.transfer import upload, upload_together
from cudd_core.configuration import Configuration, Switch
from cudd_core.data.augment import Crops, CropScale, Mixes, crops_of, draw_crops, draw_mixes, mixes_of
from cudd_core.data.normalizer import Normalizer
from cudd_core.records import NetworkSpec, SyntheticSet
from cudd_core.seeding import host_rngs


class ReplayConfig(Configuration):
    """Augmentation shared by relabelling and by training on the labels."""

    crop_scale: CropScale = Field((0.08, 1.0), description="Area range of the random resized crop.")
    flip: bool = Field(True, description="Mirror half of the images (turn off for digits and text).")
    mix: Literal["cutmix", "mixup", "none"] = Field("cutmix", description="Mixing applied to every batch.")
    mix_alpha: float = Field(1.0, gt=0, description="α of Beta(α, α), from which the mixing ratio is drawn.")
    reuse: Annotated[int, Switch()] = Field(
        1, ge=1, description="Times each epoch's augmentation and labels are used; label bytes shrink by this factor."
    )

    def distinct_epochs(self, epochs: int) -> int:
        """Return E = ⌈epochs / reuse⌉: training epoch e repeats epoch e mod E, in the same order."""
        return -(-epochs // self.reuse)


def epoch_order(seed: int, epoch: int, n: int) -> Tensor:
    """Return the order of n images in an epoch, a permutation int64 [n]."""
    return epoch_orders(seed, range(epoch, epoch + 1), n)[0]


def epoch_orders(seed: int, epochs: range, n: int) -> Tensor:
    """Return the orders of n images in `epochs`, permutations int64 [epochs, n]."""
    rngs = host_rngs(seed, (("replay", epoch) for epoch in epochs))
    return torch.from_numpy(np.stack([rng.permutation(n) for rng in rngs]))


def draw_batches(
    config: ReplayConfig, seed: int, batches: tuple[tuple[int, int, int], ...], size: int
) -> tuple[Crops, Mixes | None]:
    """Draw how size × size images are cropped, mirrored and mixed, for batches given as (epoch, step, images).

    Each batch draws from its own stream, so it does not depend on the other batches drawn with it.
    """
    crops, mixes = [], []
    paths = (("replay", epoch, step) for epoch, step, _ in batches)
    for (*_, n), rng in zip(batches, host_rngs(seed, paths), strict=True):
        crops.append(draw_crops(n, config.flip, rng))
        if config.mix != "none":
            mixes.append(draw_mixes(config.mix, n, size, config.mix_alpha, rng))
    return crops_of(crops, config.crop_scale, config.flip, size), mixes_of(mixes, size) if mixes else None


# Networks that are compared see the same views, and so did the teacher. On a GPU, where drawing takes as long as a
# small network's step, a run draws them once. On a CPU drawing takes a hundredth of a step, and thousands of small
# arrays kept between the activations would keep the heap from reusing its memory: gigabytes in a run.
_draw_once = functools.lru_cache(maxsize=2048)(draw_batches)


@dataclass(frozen=True)
class Views:
    """Batches that were made together: `steps` of each of `epochs`; several epochs only if all of them are whole.

    `images` float32 [n, C, H, W] in the teacher's normalised space, channels last; `labels` and `partners` int64 [n]:
    the classes of an image's own pixels and of those mixed in; `shares` float64 [epochs, steps], in [0, 1]: the share
    of its own pixels in each image of a batch, by area. All on the device. `bounds`: the (start, stop) rows of each
    batch, counted from the first row of its epoch here.
    """

    epochs: range
    steps: range
    images: Tensor
    labels: Tensor
    partners: Tensor
    shares: Tensor
    bounds: Sequence[tuple[int, int]]

    def places(self, epoch: int) -> list[slice]:
        """Return the rows of every batch of an epoch in `images`."""
        before = (epoch - self.epochs.start) * self.bounds[-1][1]
        return [slice(before + start, before + stop) for start, stop in self.bounds]

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Yield (images, labels, partners, share) of every batch of an epoch."""
        shares = self.shares[epoch - self.epochs.start]
        for place, share in zip(self.places(epoch), shares.unbind(), strict=True):
            yield self.images[place], self.labels[place], self.partners[place], share


_VALUES_TOGETHER = {"cpu": 2**19, "cuda": 2**22}
"""Image values that are made, and labelled, at the same time: 170 images of 32 px on a CPU, where more gain nothing, or
1,365, which keep a GPU busy."""

_EPOCHS_TOGETHER = {"cpu": 1, "cuda": 16}
"""Most whole epochs that are made at the same time. On a GPU, launching the kernels for a small epoch takes longer than
running them."""


def batches_together(batch_size: int, values: int, device: str) -> int:
    """Return how many whole batches are made, and labelled, at the same time, if an image has `values` values."""
    return max(1, _VALUES_TOGETHER[device] // (batch_size * values))


def epochs_together(values: int, device: str) -> int:
    """Return how many whole epochs are made at the same time, if all images of the set have `values` values."""
    return max(1, min(_EPOCHS_TOGETHER[device], _VALUES_TOGETHER[device] // values))


RESIDENT_BYTES = 4 << 30
"""Most bytes of images that are kept on a GPU; a larger set stays on the host, and is uploaded batch by batch."""


_Made = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Images, labels, partners and, if images are mixed, shares, as in `Views`; of the latter one for each batch."""


class Replay:
    """Batches of a synthetic set, by epoch and step. Up to `RESIDENT_BYTES`, the set is kept on the device as uint8."""

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
        resident = synthetic.images.nbytes <= RESIDENT_BYTES
        self.pixels = synthetic.images.to(runtime.device) if resident else synthetic.images
        self.labels = synthetic.labels.to(runtime.device)
        self.normalizer = Normalizer.of(spec, runtime.device)
        self.bounds = batch_bounds(len(synthetic.labels), batch_size)
        kind, values = runtime.device.type, self.pixels[0].numel()
        self._steps = batches_together(max(stop - start for start, stop in self.bounds), values, kind)
        self._epochs = epochs_together(self.pixels.numel(), kind)
        self._last: Views | None = None
        self._last_orders: tuple[range, Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches."""
        return len(self.bounds)

    def orders(self, epochs: range) -> Tensor:
        """Return the order of images in each of `epochs`, int64 [epochs, n]; the last result is kept."""
        if self._last_orders is None or self._last_orders[0] != epochs:
            self._last_orders = epochs, epoch_orders(self.seed, epochs, len(self.pixels))
        return self._last_orders[1]

    def views(self, epoch: int) -> Iterator[Views]:
        """Yield the epoch's batches, as many together as fit, perhaps along with those of neighbouring epochs.

        Which epochs those are depends only on this one's number, and so does every bit of the result.
        """
        if self._epochs == 1:
            for first in range(0, len(self.bounds), self._steps):
                steps = range(first, min(first + self._steps, len(self.bounds)))
                yield self._made_together(range(epoch, epoch + 1), steps)
            return
        if self._last is None or epoch not in self._last.epochs:
            first = epoch - epoch % self._epochs
            self._last = self._made_together(range(first, first + self._epochs), range(len(self.bounds)))
        yield self._last

    def walk(self, epochs: range) -> Iterator[tuple[Views, range]]:
        """Yield all batches of `epochs`, in order, together with those of the epochs to which they belong."""
        epoch = epochs.start
        while epoch < epochs.stop:
            asked = range(epoch, epoch + 1)
            for views in self.views(epoch):
                asked = range(epoch, min(views.epochs.stop, epochs.stop))
                yield views, asked
            epoch = asked.stop

    def _made_together(self, epochs: range, steps: range) -> Views:
        """Draw the augmentation batch by batch, then compute all batches at once."""
        device = self.runtime.device
        begin, end = self.bounds[steps.start][0], self.bounds[steps.stop - 1][1]
        bounds = [(start - begin, stop - begin) for start, stop in self.bounds[steps.start : steps.stop]]
        drawn = tuple(
            (epoch, step, stop - start) for epoch in epochs for step, (start, stop) in zip(steps, bounds, strict=True)
        )
        draw = _draw_once if device.type == "cuda" else draw_batches
        crops, mixes = draw(self.config, self.seed, drawn, self.pixels.shape[-1])
        rows = self.orders(epochs)[:, begin:end].flatten()
        kernels = gpu_kernels("views") if device.type == "cuda" else None
        if kernels is None:
            images, labels, partners, shares = self._made_by_torch(rows, crops, mixes)
        else:
            images, labels, partners, shares = self._made_by_kernel(kernels, rows, crops, mixes)
        if shares is None:
            shares = torch.ones(len(drawn), dtype=torch.float64, device=device)
        return Views(epochs, steps, images, labels, partners, shares.view(len(epochs), -1), bounds)

    def _made_by_torch(self, rows: Tensor, crops: Crops, mixes: Mixes | None) -> _Made:
        device = self.runtime.device
        chosen = upload(rows, device)
        pixels = self.pixels[chosen if self.pixels.is_cuda else rows]
        images, labels = crops.warp(pixels.shape[-1], device)(self.normalizer(pixels)), self.labels[chosen]
        partners, shares = labels, None
        if mixes is not None:
            images, partners = mixes(images), labels[upload(torch.from_numpy(mixes.partner), device)]
            shares = upload(torch.from_numpy(mixes.shares), device)
        return images.contiguous(memory_format=torch.channels_last), labels, partners, shares

    def _made_by_kernel(self, kernels: ModuleType, rows: Tensor, crops: Crops, mixes: Mixes | None) -> _Made:
        """Do the same with one upload and one kernel: torch's take longer to launch than to run."""
        device = self.runtime.device
        drawn: list[NDArray[Any]] = [crops.boxes, crops.mirrored]
        if mixes is not None:
            drawn += [mixes.shares, mixes.partner, mixes.batch, mixes.boxes, mixes.keep]
        chosen, boxes, mirrored, *mixing = upload_together([rows, *map(torch.from_numpy, drawn)], device)
        pixels, places = self.pixels, chosen
        if not pixels.is_cuda:
            pixels, places = upload(pixels[rows], device), torch.arange(len(rows), device=device)
        normal, labels = (self.normalizer.mean, self.normalizer.std), self.labels[chosen]
        if mixes is None:
            return kernels.make_views(pixels, normal, (places, boxes, mirrored)), labels, labels, None
        shares, partner, *_ = mixing
        images = kernels.make_views(pixels, normal, (places, boxes, mirrored), mixing[1:])
        return images, labels, labels[partner], shares


class Labels(Protocol):
    """Where the labels of a replay come from."""

    def of(self, epoch: int, views: Views) -> Iterable[Tensor]:
        """Return the teacher's logits for the epoch's batches in `views`: float16 [b, K] each, on their device."""
        ...


class LabelledReplay:
    """A `Replay` with labels, as `training.fit` takes it. Its first `distinct` epochs are repeated.

    Targets are the teacher's logits, float16 [b, K], and, with `classes`, the images' classes as given by
    `Views.batches`. They are optional, because a step on a GPU copies every target, even one that the loss ignores.
    """

    def __init__(self, replay: Replay, labels: Labels, distinct: int, *, classes: bool = False) -> None:
        self.replay, self.labels, self.distinct, self.classes = replay, labels, distinct, classes
        self.steps_per_epoch = replay.steps_per_epoch

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield (images, *targets) of one epoch."""
        number %= self.distinct
        for views in self.replay.views(number):
            for (images, *classes), logits in zip(views.batches(number), self.labels.of(number, views), strict=True):
                yield images, logits, *(classes if self.classes else ())


class ClassReplay:
    """A `Replay` with only the classes of its images, which needs no stored labels.

    `distinct`: training epoch e repeats epoch e mod `distinct`, as it does where labels are reused.
    """

    def __init__(self, replay: Replay, distinct: int) -> None:
        self.replay, self.distinct = replay, distinct
        self.steps_per_epoch = replay.steps_per_epoch

    def epoch(self, number: int) -> Iterator[tuple[Tensor, ...]]:
        """Yield (images, labels, partners, share) of one epoch."""
        number %= self.distinct
        for views in self.replay.views(number):
            yield from views.batches(number)


def batch_bounds(n: int, batch_size: int) -> list[tuple[int, int]]:
    """Cut 0..n into batches; a last batch of one image joins the one before it, since BatchNorm cannot train on one."""
    starts = list(range(0, n, batch_size))
    if len(starts) > 1 and n - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], n], strict=True))
