"""Augmentation as matrices, against the operations that it stands for."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms import RandomResizedCrop

from cudd_core.data.augment import (
    CropScale,
    MixDraws,
    Warp,
    annealed_scale,
    draw_mixes,
    interpolation_matrices,
    mixes_of,
    padded_crop_warp,
    resized_crop_warp,
    sample_crops,
    shift_matrices,
)
from cudd_core.data.normalizer import Normalizer
from cudd_core.seeding import host_rng


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def numbered(size: int) -> Tensor:
    """One image whose pixels all differ, so that a permutation of them is recognised exactly."""
    return torch.arange(size * size, dtype=torch.float32).view(1, 1, size, size)


def intervals(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """(start, length) inside 0..size, edges included."""
    return st.integers(1, size).flatmap(lambda length: st.tuples(st.integers(0, size - length), st.just(length)))


boxes = st.integers(2, 24).flatmap(lambda size: st.tuples(st.just(size), intervals(size), intervals(size)))


@settings(deadline=None, max_examples=60)
@given(boxes)
def test_crop_equals_bilinear_interpolation_of_the_box(case: tuple[int, tuple[int, int], tuple[int, int]]) -> None:
    size, (top, height), (left, width) = case
    rows = interpolation_matrices(torch.tensor([top]), torch.tensor([height]), size)
    columns = interpolation_matrices(torch.tensor([left]), torch.tensor([width]), size)
    images = noise(2, 3, size, size)
    ours = Warp(rows, columns)(images)
    box = images[..., top : top + height, left : left + width]
    torch_s = interpolate(box, size=(size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours, torch_s, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40).flatmap(lambda size: st.tuples(st.just(size), intervals(size))))
def test_rows_are_weights_inside_the_box(case: tuple[int, tuple[int, int]]) -> None:
    size, (start, length) = case
    matrix = interpolation_matrices(torch.tensor([start]), torch.tensor([length]), size)[0].numpy()
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    assert matrix.min() >= 0 and matrix.dtype == np.float32
    outside = np.delete(matrix, np.arange(start, start + length), axis=1)
    assert not outside.any()


@pytest.mark.parametrize("size", [1, 8, 33])
def test_the_whole_image_is_the_identity_exactly(size: int) -> None:
    whole = interpolation_matrices(torch.tensor([0]), torch.tensor([size]), size).numpy()
    assert np.array_equal(whole[0], np.eye(size))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(-12, 12), st.integers(-12, 12))
def test_shift_is_zero_padding_and_a_crop(size: int, down: int, right: int) -> None:
    images = noise(2, 3, size, size)
    matrices = shift_matrices(torch.tensor([down, right]), size)
    shifted = Warp(matrices[:1], matrices[1:])(images)
    padded = pad(images, (12, 12, 12, 12))
    assert torch.equal(shifted, padded[..., 12 + down : 12 + down + size, 12 + right : 12 + right + size])


def test_padded_crops_reach_every_offset_and_mirror_half() -> None:
    size, padding, n = 8, 1, 400
    image = numbered(size) + 1
    outcomes = {
        (down, right, flip): torch.flip(crop, (-1,)) if flip else crop
        for down, right in itertools.product(range(-padding, padding + 1), repeat=2)
        for crop in [pad(image, (1, 1, 1, 1))[..., 1 + down : 9 + down, 1 + right : 9 + right]]
        for flip in (False, True)
    }
    warped = padded_crop_warp(n, size, padding, True, host_rng(0, "pad"))(image.expand(n, 1, size, size))
    found = [[key for key, value in outcomes.items() if torch.equal(value[0], w)] for w in warped]
    assert all(len(keys) == 1 for keys in found)
    keys = [keys[0] for keys in found]
    assert {key[:2] for key in keys} == set(itertools.product((-1, 0, 1), repeat=2))
    assert 0.4 < sum(flip for *_, flip in keys) / n < 0.6
    straight = padded_crop_warp(n, size, 0, False, host_rng(0, "pad"))(image)
    assert torch.equal(straight, image.expand(n, 1, size, size))


def test_flip_is_torch_flip_after_the_crop() -> None:
    image = noise(1, 3, 16, 16)
    plain = resized_crop_warp(200, 16, (0.08, 1.0), False, host_rng(0, "warp"))(image)
    flipped = resized_crop_warp(200, 16, (0.08, 1.0), True, host_rng(0, "warp"))(image)
    mirrored = [bool(torch.allclose(f, p.flip(-1), atol=1e-6)) for f, p in zip(flipped, plain, strict=True)]
    same = [bool(torch.equal(f, p)) for f, p in zip(flipped, plain, strict=True)]
    assert all(a != b for a, b in zip(mirrored, same, strict=True))
    assert 0.35 < sum(mirrored) / 200 < 0.65


@pytest.mark.parametrize("jitter", [1, 3])
def test_roll_is_torch_roll_after_crop_and_flip(jitter: int) -> None:
    image = noise(1, 3, 8, 8)
    n = 120
    plain = resized_crop_warp(n, 8, (0.3, 1.0), True, host_rng(0, "warp"))(image)
    rolled = resized_crop_warp(n, 8, (0.3, 1.0), True, host_rng(0, "warp"), jitter)(image)
    shifts = list(itertools.product(range(-jitter, jitter + 1), repeat=2))
    found = [
        [shift for shift in shifts if torch.allclose(r, p.roll(shift, (-2, -1)), atol=1e-6)]
        for r, p in zip(rolled, plain, strict=True)
    ]
    assert all(len(matches) >= 1 for matches in found)
    unique = [matches[0] for matches in found if len(matches) == 1]
    assert len(unique) > 0.9 * n
    for axis in (0, 1):
        assert set(range(jitter + 1)) <= {shift[axis] for shift in unique}


@settings(deadline=None)
@given(st.integers(2, 64), st.floats(0.02, 1), st.floats(0.02, 1), st.integers(0, 100))
def test_boxes_lie_inside_and_keep_to_the_ranges_of_area_and_ratio(size: int, a: float, b: float, seed: int) -> None:
    low, high = min(a, b), max(a, b)
    crops = sample_crops(50, size, (low, high), False, host_rng(seed)).boxes
    assert crops.dtype == np.int64 and crops.shape == (50, 4)
    top, left, height, width = crops.T
    assert (top >= 0).all() and (left >= 0).all() and (height > 0).all() and (width > 0).all()
    assert (top + height <= size).all() and (left + width <= size).all()
    whole = (height == size) & (width == size)  # also what is left when no try fits
    half = 0.5 + 1e-9  # sides are rounded
    area = size * size
    assert (whole | ((height + half) * (width + half) >= low * area)).all()
    assert (whole | ((height - half) * (width - half) <= high * area)).all()
    assert (whole | ((width + half) / (height - half) >= 3 / 4)).all()
    assert (whole | ((width - half) / (height + half) <= 4 / 3)).all()


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.6)])
def test_boxes_are_distributed_as_torchvision_s(scale: tuple[float, float]) -> None:
    n, size = 4000, 32
    ours = sample_crops(n, size, scale, False, host_rng(0, "crops")).boxes.astype(float)
    image = torch.zeros(1, size, size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(n)], float)

    def summary(boxes: np.ndarray) -> np.ndarray:
        top, left, height, width = boxes.T
        area, log_ratio = height * width, np.log(width / height)
        columns = (area / size**2, log_ratio, top / size, left / size, height / size, width / size)
        return np.array([[c.mean(), c.std()] for c in columns])

    np.testing.assert_allclose(summary(ours), summary(theirs), atol=0.02)


def test_a_box_is_anywhere_in_the_image_its_row_and_column_drawn_apart() -> None:
    boxes = sample_crops(4000, 8, (0.25, 0.25), False, host_rng(0, "places")).boxes
    placed = boxes[(boxes[:, 2:] == 4).all(1), :2]  # squares of half the side: 5 × 5 places
    assert len(placed) > 1000
    counts = np.bincount(5 * placed[:, 0] + placed[:, 1], minlength=25)
    expected = len(placed) / 25
    assert float(((counts - expected) ** 2 / expected).sum() / 24) < 1.8  # χ² over its degrees of freedom


ANNEALED = {"linear": [1.0, 0.77, 0.54, 0.31, 0.08], "cosine": [1.0, 0.8652691, 0.54, 0.2147309, 0.08]}
"""The lower end in iterations 0 … 4 of 5, from 1 to 0.08."""


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_the_lower_end_falls_from_the_upper_one_to_its_own(anneal: Literal["linear", "cosine"]) -> None:
    low, high = annealed_scale((0.08, 1.0), anneal, np.arange(5), 5)
    np.testing.assert_allclose(low, ANNEALED[anneal], atol=1e-7)
    assert high == 1.0
    low, high = annealed_scale((0.2, 0.5), anneal, np.arange(7), 7)
    assert isinstance(low, np.ndarray) and (np.diff(low) < 0).all() and (low[0], low[-1], high) == (0.5, 0.2, 0.5)
    assert annealed_scale((0.08, 1.0), "off", np.arange(5), 5) == (0.08, 1.0)


@pytest.mark.parametrize("anneal", ["linear", "cosine"])
def test_annealed_crops_begin_with_whole_images_and_end_with_the_full_range(
    anneal: Literal["linear", "cosine"],
) -> None:
    n, size, total = 300, 32, 11

    def boxes(iteration: int) -> np.ndarray:
        scale = annealed_scale((0.08, 1.0), anneal, np.full(n, iteration), total)
        return sample_crops(n, size, scale, False, host_rng(0, "crops")).boxes

    assert (boxes(0) == [0, 0, size, size]).all()
    np.testing.assert_array_equal(
        boxes(total - 1), sample_crops(n, size, (0.08, 1.0), False, host_rng(0, "crops")).boxes
    )
    middle = boxes(total // 2)
    assert ((middle[:, 2] + 0.5) * (middle[:, 3] + 0.5) >= 0.54 * size * size).all()
    assert (middle[:, 2] * middle[:, 3] < 0.6 * size * size).any()


def test_every_crop_keeps_to_its_own_lower_end() -> None:
    n, size = 2000, 32
    low = np.where(np.arange(n) % 2 == 0, 0.1, 0.7)
    *_, height, width = sample_crops(n, size, (low, 1.0), False, host_rng(0)).boxes.T
    area = height * width / size**2
    assert area[1::2].min() > 0.65 and area[::2].min() < 0.15


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.4), (0.5, 1.1), (-0.1, 0.5)])
def test_impossible_area_ranges_are_refused(scale: tuple[float, float]) -> None:
    class Model(BaseModel):
        crop: CropScale

    with pytest.raises(ValidationError, match="0 < low ≤ high ≤ 1"):
        Model(crop=scale)


def test_one_warp_serves_the_batch_and_many_serve_one_image_each() -> None:
    images = noise(5, 3, 12, 12)
    shared = resized_crop_warp(1, 12, (0.08, 1.0), True, host_rng(0), 2)
    for image, warped in zip(images, shared(images), strict=True):
        torch.testing.assert_close(shared(image[None])[0], warped)
    each = resized_crop_warp(5, 12, (0.08, 1.0), True, host_rng(0), 2)
    together = each(images)
    for i in range(5):
        alone = Warp(each.rows[i : i + 1], each.columns[i : i + 1])(images[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])
    assert len({tuple(each.rows[i].flatten().tolist()) for i in range(5)}) > 1


def test_the_gradient_is_the_transpose() -> None:
    warp = resized_crop_warp(3, 10, (0.08, 1.0), True, host_rng(0), 3)
    x = noise(3, 2, 10, 10, dtype=torch.float64).requires_grad_()
    y = noise(3, 2, 10, 10, dtype=torch.float64).flip(0)
    product = (warp(x) * y).sum()
    transposed = Warp(warp.rows.transpose(1, 2), warp.columns.transpose(1, 2))(y)
    torch.testing.assert_close(product, (x * transposed).sum())
    (gradient,) = torch.autograd.grad(product, x)
    torch.testing.assert_close(gradient, transposed)


@pytest.mark.parametrize("draw", [resized_crop_warp, None])
def test_the_same_stream_gives_the_same_bytes_and_another_one_others(draw: Any) -> None:
    def warp(seed: int) -> Warp:
        if draw is None:
            return padded_crop_warp(4, 8, 2, True, host_rng(seed))
        return resized_crop_warp(4, 8, (0.08, 1.0), True, host_rng(seed), 2)

    assert torch.equal(warp(0).rows, warp(0).rows) and torch.equal(warp(0).columns, warp(0).columns)
    assert not torch.equal(warp(0).rows, warp(1).rows)


def chosen(n: int, ratio: float, centre: tuple[int, int] | None = None) -> MixDraws:
    """Each image with the one before it."""
    return MixDraws(ratio, np.roll(np.arange(n), 1), centre)


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("size", [8, 32])
def test_cutmix_replaces_a_square_box_of_the_complementary_area(ratio: float, size: int) -> None:
    mix = mixes_of([chosen(4, ratio, (size // 2, size // 2))], size)
    assert set(mix.masks().unique().tolist()) <= {0.0, 1.0}
    hole = mix.masks()[0, 0] == 0
    height, width = int(hole.any(1).sum()), int(hole.any(0).sum())
    assert height == width and int(hole.sum()) == height * width  # a box, and all of it
    assert abs(height - size * np.sqrt(1 - ratio)) <= 1
    images = noise(4, 3, size, size)
    mixed = mix(images)
    assert torch.equal(mixed[..., ~hole], images[..., ~hole])
    assert torch.equal(mixed[..., hole], images.roll(1, 0)[..., hole])


@pytest.mark.parametrize("centre", [(0, 0), (0, 31), (31, 0), (31, 31)])
def test_a_cutmix_box_is_clipped_at_the_border(centre: tuple[int, int]) -> None:
    mix = mixes_of([chosen(2, 0.75, centre)], 32)  # a box of half the side: a quarter of it is inside
    assert abs(int((mix.masks() == 0).sum()) - 8 * 8) <= 17
    assert float(mix.masks()[0, 0, centre[0], centre[1]]) == 0


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_shares_are_the_means_of_the_masks(kind: Literal["cutmix", "mixup"]) -> None:
    """Also of boxes that are clipped: classes count by the pixels that are there."""
    mixes = mixes_of([draw_mixes(kind, 3, 8, 1.0, host_rng(0, "shares", i)) for i in range(200)], 8)
    torch.testing.assert_close(mixes.masks().double().mean((1, 2, 3)), torch.from_numpy(mixes.shares))


@pytest.mark.parametrize("kind", ["cutmix", "mixup"])
def test_partners_are_a_permutation_and_ratios_are_beta_distributed(kind: Literal["cutmix", "mixup"]) -> None:
    mixes = [mixes_of([draw_mixes(kind, 7, 64, 1.0, host_rng(0, "mix", i))], 64) for i in range(400)]
    kept = []
    for mix in mixes:
        assert sorted(mix.partner.tolist()) == list(range(7))
        assert mix.masks().shape == (1, 1, 64, 64)
        kept.append(float(mix.masks().mean()))
    assert len({tuple(mix.partner.tolist()) for mix in mixes}) > 300
    if kind == "mixup":  # Beta(1, 1) is uniform
        assert np.mean(kept) == pytest.approx(1 / 2, abs=0.05) and np.var(kept) == pytest.approx(1 / 12, abs=0.015)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_mixup_blends_with_its_weights(ratio: float) -> None:
    mix = mixes_of([chosen(4, ratio)], 8)
    images = noise(4, 3, 8, 8)
    torch.testing.assert_close(mix(images), ratio * images + (1 - ratio) * images.roll(1, 0))


EVERY_VALUE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def normalizers() -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    return [
        ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ((0.3046,), (0.3766,)),
        ((0.0, 1.0), (1.0, 1.0)),
        ((0.9999, 0.0001), (0.001, 0.001)),
    ]


@pytest.mark.parametrize(("mean", "std"), normalizers())
def test_every_pixel_value_survives_the_round_trip(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    normalizer = Normalizer(mean, std)
    pixels = EVERY_VALUE.expand(1, len(mean), 16, 16)
    normalised = normalizer(pixels)
    assert normalised.dtype == torch.float32
    for channel, (m, s) in enumerate(zip(mean, std, strict=True)):
        exact = (np.arange(256) / 255 - m) / s
        np.testing.assert_allclose(normalised[0, channel].flatten().numpy(), exact, rtol=1e-4, atol=1e-4)
    assert torch.equal(normalizer.to_uint8(normalised), pixels)
    assert torch.equal(normalizer.to_uint8(normalizer.clamp_(normalised.clone())), pixels)


@given(st.floats(0, 1), st.floats(1e-3, 1))
def test_the_round_trip_holds_for_any_normalisation(mean: float, std: float) -> None:
    normalizer = Normalizer((mean,), (std,))
    assert torch.equal(normalizer.to_uint8(normalizer(EVERY_VALUE)), EVERY_VALUE)


@pytest.mark.parametrize(("mean", "std"), normalizers())
def test_clamping_is_in_place_and_to_the_range_of_each_channel(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    normalizer = Normalizer(mean, std)
    images = noise(2, len(mean), 8, 8) * 3000
    clamped = normalizer.clamp_(images)
    assert clamped is images
    ends = normalizer(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, len(mean), 1, 1))
    for channel in range(len(mean)):
        assert float(images[:, channel].min()) == pytest.approx(float(ends[0, channel]), abs=1e-5)
        assert float(images[:, channel].max()) == pytest.approx(float(ends[1, channel]), abs=1e-5)


def test_pixels_are_rounded_to_the_nearest() -> None:
    normalizer = Normalizer((0.5,), (0.25,))
    pixels = torch.tensor([10.4, 10.6, 254.7, 300.0, -7.0]).view(1, 1, 1, 5)
    assert normalizer.to_uint8((pixels / 255 - 0.5) / 0.25).flatten().tolist() == [10, 11, 255, 255, 0]
