"""Images put together from patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.patches import patched_slices, patchwork

SIZE, SLICES, CLASSES, FIRST = 8, 5, 3, 10
NORMALIZER = Normalizer((0.0,), (1 / 255,))


class Brightness(nn.Module):
    """Surer of class k the brighter (k = 1) or the darker (others) an image is."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean((1, 2, 3)) / 255
        return torch.stack([-mean, mean, -mean], 1)


def patched(originals: Tensor, slices: range = range(10, 15), seed: int = 0, **fields: int) -> Tensor:
    config = SynthesisConfig.model_validate({"init": "patches", **fields})
    runtime = Runtime(ComputeConfig())
    near = originals[patched_slices(SLICES, slice(slices.start - FIRST, slices.stop - FIRST), config)]
    made = patchwork(Brightness(), near, torch.arange(CLASSES), slices, config, NORMALIZER, seed, runtime)
    return made.view(len(slices), CLASSES, 1, SIZE, SIZE)


def flat() -> Tensor:
    """Every original one colour of its own."""
    values = torch.arange(SLICES * CLASSES, dtype=torch.uint8).view(SLICES, CLASSES, 1, 1, 1)
    return values.expand(SLICES, CLASSES, 1, SIZE, SIZE).contiguous()


def noisy() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (SLICES, CLASSES, 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def test_patches_are_of_one_class_the_first_of_the_image_s_own_original_and_all_serve_equally() -> None:
    images = patched(flat())
    for s in range(SLICES):
        for c in range(CLASSES):
            corners = images[s, c, 0, [0, 0, 7, 7], [0, 7, 0, 7]].tolist()
            assert corners == [(s + k) % SLICES * CLASSES + c for k in range(4)]
    counts = torch.bincount(images.flatten().long())
    assert counts.tolist() == [SIZE * SIZE] * (SLICES * CLASSES)


@pytest.mark.parametrize("grid", [2, 4])
def test_patches_are_crops_in_their_own_resolution(grid: int) -> None:
    originals, side = noisy(), SIZE // grid
    images = patched(originals, patch_grid=grid)
    for s in range(SLICES):
        for cell in range(grid**2):
            y, x = side * (cell // grid), side * (cell % grid)
            patch = images[s, 1, 0, y : y + side, x : x + side]
            places = originals[(s + cell) % SLICES, 1, 0].unfold(0, side, 1).unfold(1, side, 1)
            assert bool((places == patch).flatten(2).all(2).any())


def test_the_surest_candidate_is_taken() -> None:
    """With so many candidates that every place is among them, class 1 gets the brightest patch, others the darkest."""
    originals = torch.zeros(SLICES, CLASSES, 1, SIZE, SIZE, dtype=torch.uint8)
    originals[..., 4:, :4] = 200  # one bright quarter
    images = patched(originals, patch_candidates=400).float()
    assert float(images[:, 1].min()) == 200 and float(images[:, 0].max()) == float(images[:, 2].max()) == 0
    one = patched(originals, patch_candidates=1).float()
    assert 0 < float(one[:, 1].mean()) < 200


def test_surest_is_the_most_probable_not_the_loudest() -> None:
    """Where an image is bright, class 1 answers loudly, but another class louder still."""

    class Loud(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            mean = images.mean((1, 2, 3)) / 255
            return torch.stack([2 * mean, mean, 0 * mean], 1)

    originals = torch.zeros(SLICES, CLASSES, 1, SIZE, SIZE, dtype=torch.uint8)
    originals[..., 4:, :4] = 200
    config = SynthesisConfig(init="patches", patch_candidates=400)
    runtime = Runtime(ComputeConfig())
    made = patchwork(Loud(), originals, torch.arange(CLASSES), range(SLICES), config, NORMALIZER, 0, runtime)
    by_class = made.view(SLICES, CLASSES, -1)
    assert int(by_class[:, 0].min()) == 200 and int(by_class[:, 1].max()) == 0


def test_an_image_is_the_same_whichever_task_makes_it_and_follows_the_seed() -> None:
    originals = noisy()
    whole = patched(originals)
    for tasks in ([range(10, 12), range(12, 15)], [range(s, s + 1) for s in range(10, 15)]):
        assert torch.equal(torch.cat([patched(originals, slices) for slices in tasks]), whole)
    assert not torch.equal(patched(originals, seed=1), whole)
    assert np.unique(whole.numpy()).size > 100
