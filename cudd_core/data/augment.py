"""Crop, flip and roll as two small matrices; CutMix and mixup.

Every geometric augmentation here is separable: X' = A_y X A_xᵀ with interpolation matrices A_y [H, H] and A_x [W, W].
The same code handles one crop for the whole batch or one per image. Its gradient is exact and repeatable on every
device (the backward passes of `grid_sample` and bilinear `interpolate` use atomic additions on CUDA). Parameters are
drawn on the host, so the same seed gives the same pixels on every device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator
from torch import Tensor

from cudd_core.compute.transfer import upload


def _area_range(scale: tuple[float, float]) -> tuple[float, float]:
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError("an area range needs 0 < low ≤ high ≤ 1")
    return scale


CropScale = Annotated[tuple[float, float], AfterValidator(_area_range)]
"""Area range (low, high) of random resized crops, as shares of the image."""

AreaRange = tuple[float | NDArray[np.float64], float]
"""Area range of n crops: the lower end may differ from crop to crop, float64 [n]."""

RATIO = (3 / 4, 4 / 3)
"""Aspect ratios of random resized crops, as in torchvision."""


def annealed_scale(
    scale: tuple[float, float], anneal: Literal["off", "linear", "cosine"], iterations: NDArray[np.int64], total: int
) -> AreaRange:
    """Return the area range for crops drawn in `iterations`, int64 [n], out of 0 … total − 1.

    From easy to hard (CDA, Yin and Shen, TMLR 2024): with t = iteration / (total − 1) the lower end is
    low + (high − low) · (1 − t), or with `cosine` low + (high − low) · ½ (1 + cos πt): whole images in the first
    iteration, the full range in the last. `off` gives `scale`.
    """
    if anneal == "off":
        return scale
    low, high = scale
    t = iterations / max(1, total - 1)
    share = 1 - t if anneal == "linear" else 0.5 * (1 + np.cos(np.pi * t))
    return low + (high - low) * share, high


_LOG_RATIO = (math.log(RATIO[0]), math.log(RATIO[1]))

_TRIES = 10
"""Boxes tried for one crop; if none fits, the crop is the whole image."""


def draw_crops(n: int, flip: bool, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the random numbers for n random resized crops, uniform in [0, 1), all at once, which is fastest.

    Each crop needs one area and one ratio per try, two numbers for its place and, if `flip`, one for mirroring. The
    result, float64, has the areas of all crops first, then their ratios, places and mirror numbers.
    """
    return rng.random(n * (2 * _TRIES + 2 + flip))


def interpolation_matrices(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Return float32 [n, size, size]: row o holds the bilinear weights that make output pixel o.

    Input pixels start … start + length − 1, int64 [n] each, are stretched to `size` pixels (pixel centres at
    half-integers, edges clamped inside the crop, no antialiasing: crops are never shrunk), as
    `interpolate(align_corners=False)`. The bits are the same on every device, since each operation rounds separately.
    """
    start, length = start[:, None], length[:, None]
    pixel = torch.arange(size, device=start.device)
    # A tensor on the device: if the divisor came from the host, a GPU would multiply by its reciprocal instead.
    whole = torch.full((), size, dtype=torch.float64, device=start.device)
    centre = (pixel + 0.5).double() * (length / whole) - 0.5
    centre = torch.minimum(centre.clamp_min(0), (length - 1).double())
    low = centre.floor().long()
    high = torch.minimum(low + 1, length - 1)
    weight = (centre - low).float()[:, :, None]
    return (pixel == (start + low)[:, :, None]) * (1 - weight) + (pixel == (start + high)[:, :, None]) * weight


def shift_matrices(offset: Tensor, size: int) -> Tensor:
    """Return float32 [n, size, size] that shift by `offset` pixels, int64 [n], and fill with zeros (pad-and-crop)."""
    pixel = torch.arange(size, device=offset.device)
    return (pixel == (pixel + offset[:, None])[:, :, None]).float()


@dataclass(frozen=True)
class Warp:
    """A separable augmentation: `rows` and `columns`, float32 [n or 1, size, size], on the host or the device."""

    rows: Tensor
    columns: Tensor

    def __call__(self, images: Tensor) -> Tensor:
        """Apply to float images [n, C, H, W]; a single matrix pair serves the whole batch."""
        rows = self.rows.to(images.device, images.dtype)[:, None]
        columns = self.columns.to(images.device, images.dtype)[:, None]
        return rows @ images @ columns.transpose(-1, -2)

    def rolled(self, roll: Tensor) -> Warp:
        """Return this warp followed by a roll of `roll` pixels down and right, int64 [n, 2]."""
        size = self.rows.shape[-1]
        index = (torch.arange(size, device=roll.device)[None, :, None] - roll[:, None]) % size
        rows, columns = (
            each.gather(1, index[:, :, axis : axis + 1].expand_as(each))
            for axis, each in enumerate((self.rows, self.columns))
        )
        return Warp(rows, columns)


@dataclass(frozen=True)
class Crops:
    """n random resized crops: `boxes` int64 [n, 4] (top, left, height, width, in pixels), `mirrored` bool [n]."""

    boxes: NDArray[np.int64]
    mirrored: NDArray[np.bool_]

    def warp(self, size: int, device: torch.device | str = "cpu") -> Warp:
        """Return the augmentation of size × size images, made on `device`."""
        boxes = upload(torch.from_numpy(self.boxes), device)
        # Rows and columns at once: on a GPU, launching the kernels takes longer than running them.
        starts, lengths = boxes.view(-1, 2, 2).permute(1, 2, 0).flatten(1)
        rows, columns = interpolation_matrices(starts, lengths, size).chunk(2)
        return Warp(rows, _mirror(columns, self.mirrored))


def crops_of(draws: Sequence[NDArray[np.float64]], scale: AreaRange, flip: bool, size: int) -> Crops:
    """Return the crops of size × size images for several results of `draw_crops`, one after another.

    The distribution is that of torchvision's RandomResizedCrop: area uniform in `scale`, log-ratio uniform, ten tries,
    then the whole image; mirrored with probability ½ if `flip`.
    """
    ends = np.cumsum([_TRIES, _TRIES, 2, int(flip)])
    counts = [len(draw) // ends[-1] for draw in draws]
    areas, ratios, place, mirrored = (
        np.concatenate(
            [draw[n * start : n * end].reshape(n, end - start) for draw, n in zip(draws, counts, strict=True)]
        )
        for start, end in pairwise((0, *ends))
    )
    height, width, fits = (each[:, 0] for each in _sides(areas[:, :1], ratios[:, :1], scale, size))
    # Nearly all crops fit at the first try; further tries are computed only where needed.
    again = np.flatnonzero(~fits)
    low = scale[0][again] if isinstance(scale[0], np.ndarray) else scale[0]
    heights, widths, fits = _sides(areas[again, 1:], ratios[again, 1:], (low, scale[1]), size)
    first, row = fits.argmax(axis=1), np.arange(len(again))
    height[again] = np.where(fits[row, first], heights[row, first], size)
    width[again] = np.where(fits[row, first], widths[row, first], size)
    top = np.floor(place[:, 0] * (size - height + 1)).astype(np.int64)
    left = np.floor(place[:, 1] * (size - width + 1)).astype(np.int64)
    return Crops(np.stack([top, left, height, width], axis=1), np.asarray((mirrored < 0.5).any(axis=1)))


def _sides(
    areas: NDArray[np.float64], ratios: NDArray[np.float64], scale: AreaRange, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return heights and widths of boxes whose areas and ratios were drawn as [n, tries], and which of them fit."""
    low = scale[0][:, None] if isinstance(scale[0], np.ndarray) else scale[0]
    # Contiguous, as if all tries were computed together: NumPy's exp may differ in the last bit for strided arrays.
    area = size * size * (low + (scale[1] - low) * np.ascontiguousarray(areas))
    ratio = np.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * np.ascontiguousarray(ratios))
    height = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    width = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    return height, width, (width > 0) & (width <= size) & (height > 0) & (height <= size)


def sample_crops(n: int, size: int, scale: AreaRange, flip: bool, rng: np.random.Generator) -> Crops:
    """Draw n random resized crops of size × size images: as `crops_of`."""
    return crops_of([draw_crops(n, flip, rng)], scale, flip, size)


def resized_crop_warp(
    n: int,
    size: int,
    scale: AreaRange,
    flip: bool,
    rng: np.random.Generator,
    jitter: int = 0,
    device: torch.device | str = "cpu",
) -> Warp:
    """Draw n random resized crops, mirrored with probability ½ if `flip`, then rolled by 0 … jitter px."""
    warp = sample_crops(n, size, scale, flip, rng).warp(size, device)
    return warp.rolled(upload(torch.from_numpy(rng.integers(0, jitter + 1, (n, 2))), device)) if jitter else warp


def padded_crop_warp(
    n: int, size: int, padding: int, flip: bool, rng: np.random.Generator, device: torch.device | str = "cpu"
) -> Warp:
    """Draw n crops of padded images, mirrored with probability ½ if `flip`; the border is 0, the mean."""
    down, right = upload(torch.from_numpy(rng.integers(-padding, padding + 1, (n, 2))), device).unbind(1)
    columns = _mirror(shift_matrices(right, size), _draw_mirrored(n, flip, rng))
    return Warp(shift_matrices(down, size), columns)


def _draw_mirrored(n: int, flip: bool, rng: np.random.Generator) -> NDArray[np.bool_]:
    return np.asarray(rng.random(n) < 0.5) if flip else np.zeros(n, dtype=np.bool_)


def _mirror(columns: Tensor, mirrored: NDArray[np.bool_]) -> Tensor:
    return torch.where(upload(torch.from_numpy(mirrored), columns.device)[:, None, None], columns.flip(1), columns)


@dataclass(frozen=True)
class Mixes:
    """How m batches with n images in all are mixed, each with a permutation of itself.

    For each image, `partner` int64 [n]: which of the n images is mixed in; `batch` int64 [n]: its batch. For each
    batch, `boxes` int64 [m, 4] (top, left, bottom, right, in pixels): where pixels are mixed; `keep` float64 [m] in
    [0, 1]: the weight of an image's own pixels inside the box. `size`: side of the images in pixels.
    """

    partner: NDArray[np.int64]
    batch: NDArray[np.int64]
    boxes: NDArray[np.int64]
    keep: NDArray[np.float64]
    size: int

    @property
    def shares(self) -> NDArray[np.float64]:
        """The share of a mixed image that is its own, by area, float64 [m]: 1 − (1 − keep) · box / image."""
        top, left, bottom, right = self.boxes.T
        shares: NDArray[np.float64] = 1 - (1 - self.keep) * (bottom - top) * (right - left) / self.size**2
        return shares

    def masks(self, device: torch.device | str = "cpu") -> Tensor:
        """Return how much of each pixel is the image's own, float32 [m, 1, H, W]: `keep` in the box, 1 outside."""
        boxes = upload(torch.from_numpy(self.boxes), device)[:, :, None]
        keep = upload(torch.from_numpy(self.keep).float(), device)[:, None, None]
        pixel = torch.arange(self.size, device=device)
        rows = (pixel >= boxes[:, 0]) & (pixel < boxes[:, 2])
        columns = (pixel >= boxes[:, 1]) & (pixel < boxes[:, 3])
        return torch.where(rows[:, :, None] & columns[:, None], keep, 1.0)[:, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Mix float images [n, C, H, W]: each · mask + its partner · (1 − mask)."""
        indices = upload(torch.from_numpy(np.stack([self.partner, self.batch])), images.device)
        mask = self.masks(images.device)[indices[1]]
        return images * mask + images[indices[0]] * (1 - mask)


class MixDraws(NamedTuple):
    """The random draws for mixing a batch of n images.

    `ratio` in [0, 1]: the share of its own pixels that an image keeps; `partner` int64 [n]: a permutation; `centre`:
    row and column of CutMix's box, in pixels.
    """

    ratio: float
    partner: NDArray[np.int64]
    centre: tuple[int, int] | None


def draw_mixes(kind: Literal["cutmix", "mixup"], n: int, size: int, alpha: float, rng: np.random.Generator) -> MixDraws:
    """Draw one mixing of n images: ratio λ ~ Beta(α, α), partners by permutation, the centre of a box uniform."""
    ratio, partner = rng.beta(alpha, alpha), rng.permutation(n)
    # Drawing both at once takes NumPy twice as long.
    centre = (int(rng.integers(size)), int(rng.integers(size))) if kind == "cutmix" else None
    return MixDraws(ratio, partner, centre)


def mixes_of(draws: Sequence[MixDraws], size: int) -> Mixes:
    """Return how batches of size × size images are mixed, one batch for each draw.

    CutMix replaces a box of area 1 − λ, clipped at the border; mixup blends everywhere.
    """
    ratio = np.array([draw.ratio for draw in draws])
    counts = [len(draw.partner) for draw in draws]
    start = np.cumsum([0, *counts[:-1]])
    partner = np.concatenate([draw.partner for draw in draws]) + np.repeat(start, counts)
    batch = np.repeat(np.arange(len(draws)), counts)
    centres = [draw.centre for draw in draws if draw.centre is not None]
    if not centres:
        return Mixes(partner, batch, np.tile(np.array([0, 0, size, size]), (len(draws), 1)), ratio, size)
    half, centre = (size * np.sqrt(1 - ratio) / 2)[:, None], np.array(centres)
    corners = [(centre - half).astype(np.int64), (centre + half).astype(np.int64)]
    return Mixes(partner, batch, np.clip(np.concatenate(corners, axis=1), 0, size), np.zeros(len(draws)), size)
