"""The augmentation of training images: what each of its settings does."""

from __future__ import annotations

import pytest
import torch

from cudd_core.data.batches import Crop, training_warp
from cudd_core.seeding import host_rng


def test_without_crop_images_are_mirrored_or_left_exactly_as_they_are() -> None:
    images = torch.randn(200, 3, 9, 9)
    rng = host_rng(0, "warp")
    assert torch.equal(training_warp(200, 9, "none", False, rng)(images), images)
    assert rng.random() == host_rng(0, "warp").random(), "nothing was drawn"
    warped = training_warp(200, 9, "none", True, rng)(images)
    mirrored = torch.tensor([torch.equal(new, old.flip(-1)) for new, old in zip(warped, images, strict=True)])
    assert torch.equal(warped[~mirrored], images[~mirrored])
    assert 60 < int(mirrored.sum()) < 140


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_flip_is_never_ignored(crop: Crop) -> None:
    image = torch.randn(1, 1, 16, 16)
    plain, flipped = (training_warp(50, 16, crop, flip, host_rng(0, "warp"))(image) for flip in (False, True))
    assert not torch.equal(plain, flipped)
