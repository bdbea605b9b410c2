"""A possible start of synthesis: images assembled from patches of real ones that the teacher is sure of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cudd_core.compute.runtime import Runtime
from cudd_core.compute.transfer import upload
from cudd_core.data.augment import Warp, interpolation_matrices
from cudd_core.data.normalizer import Normalizer
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.seeding import host_rng


def patched_slices(count: int, own: slice, config: SynthesisConfig) -> Tensor:
    """Return which of a curriculum's `count` slices the slices in `own` take patches from, cyclically: int64 [s]."""
    needed = min(count, own.stop - own.start + config.patch_grid**2 - 1)
    return torch.arange(own.start, own.start + needed) % count


@torch.no_grad()
def patchwork(
    teacher: nn.Module,
    originals: Tensor,
    classes: Tensor,
    slices: range,
    config: SynthesisConfig,
    normalizer: Normalizer,
    seed: int,
    runtime: Runtime,
) -> Tensor:
    """Return uint8 images [n, C, H, W], slice-major, each made of `patch_grid`² patches at their own resolution.

    The image of slice s takes its first patch from its own original and the others from those of the slices after it,
    cyclically within the curriculum, so that every original of a class is used equally often. Of `patch_candidates`
    crops of an original, each H / patch_grid pixels wide, it takes the one that the teacher is surest of when shown it
    at full size. The idea is RDED's (Sun et al., CVPR 2024), which ranks the crops of a whole class instead.

    `originals` uint8 [s, k, C, H, W]: those of `patched_slices`, for `classes` int64 [k]; H is a multiple of
    `patch_grid`. What an image is made of depends on (seed, slice, class), not on which task makes it.
    """
    grid, size = config.patch_grid, originals.shape[-1]
    side = size // grid
    images = torch.empty_like(originals[: len(slices)])
    for row, number in enumerate(slices):
        local = torch.arange(row, row + grid**2) % len(originals)
        for column, label in enumerate(classes.tolist()):
            own = originals[local, column]
            rng = host_rng(seed, "synthesize", number, label, "patches")
            corners = rng.integers(0, size - side + 1, (grid**2, config.patch_candidates, 2))
            chosen = _surest(teacher, own, corners, side, label, normalizer, runtime)
            for cell, (top, left) in enumerate(chosen):
                y, x = side * (cell // grid), side * (cell % grid)
                images[row, column, :, y : y + side, x : x + side] = own[cell, :, top : top + side, left : left + side]
    return images.flatten(0, 1)


def _surest(
    teacher: nn.Module,
    originals: Tensor,
    corners: np.ndarray,
    side: int,
    label: int,
    normalizer: Normalizer,
    runtime: Runtime,
) -> list[tuple[int, int]]:
    """Return for each original the (top, left) with the highest p(label).

    `originals` uint8 [m, C, H, W]; `corners` [m, candidates, 2]: the candidates for (top, left).
    """
    size, candidates = originals.shape[-1], corners.shape[1]
    starts = corners.reshape(-1, 2)
    corner = upload(torch.from_numpy(starts), runtime.device)
    lengths = torch.full((len(starts),), side, device=corner.device)
    enlarge = Warp(*(interpolation_matrices(start, lengths, size) for start in corner.unbind(1)))
    views = enlarge(normalizer(originals).repeat_interleave(candidates, 0))
    with runtime.autocast():
        logits = teacher(runtime.images(views))
    scores = logits.float().log_softmax(1)[:, label].view(-1, candidates)
    best = scores.argmax(1).tolist()
    return [(int(corners[i, b, 0]), int(corners[i, b, 1])) for i, b in enumerate(best)]
