"""Splits in memory, and limited ones."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from cudd_core.data.labels import place_in_class
from cudd_core.data.memory import ArraySplit
from cudd_core.data.subset import limited as LimitedSplit


def _split(labels: list[int], classes: int = 4) -> ArraySplit:
    pixels = torch.randint(0, 256, (len(labels), 3, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ArraySplit(pixels, torch.tensor(labels), tuple(map(str, range(classes))))


@given(st.lists(st.integers(0, 3), max_size=30))
def test_a_place_is_the_number_of_the_same_before(labels: list[int]) -> None:
    places = place_in_class(torch.tensor(labels, dtype=torch.int64)).tolist()
    assert places == [labels[:i].count(label) for i, label in enumerate(labels)]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=10), st.data())
def test_digest_changes_with_every_pixel_label_and_name(labels: list[int], data: st.DataObject) -> None:
    split = _split(labels)
    assert split.digest == _split(labels).digest
    pixels = split.pixels.clone()
    pixels.view(-1)[data.draw(st.integers(0, pixels.numel() - 1))] ^= 1
    assert ArraySplit(pixels, split.labels, split.class_names).digest != split.digest
    changed = split.labels.clone()
    changed[data.draw(st.integers(0, len(labels) - 1))] += 1
    assert ArraySplit(split.pixels, changed, split.class_names).digest != split.digest
    assert ArraySplit(split.pixels, split.labels, ("0", "1", "2", "x")).digest != split.digest


def test_a_generous_limit_keeps_every_image() -> None:
    split = _split([0, 1, 2, 3, 3, 1])
    limited = LimitedSplit(split, 5)
    assert torch.equal(limited.images(torch.arange(6)), split.pixels)
