"""scikit-learn's digits."""

from __future__ import annotations

import pytest
import torch

from cudd_core.data import open_split
from cudd_core.data.digits import _table
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

CONFIG = DataConfig(source="digits", channels=1, image_size=8)


def test_split_is_stratified_and_disjoint() -> None:
    train, test = open_split(CONFIG, "train"), open_split(CONFIG, "test")
    assert (len(train), len(test)) == (1442, 355)
    share = torch.bincount(test.labels) / (torch.bincount(test.labels) + torch.bincount(train.labels))
    assert ((share - 0.2).abs() < 0.01).all()
    assert train.class_names == test.class_names == tuple("0123456789")
    seen = {bytes(image.flatten().tolist()) for image in train.images(torch.arange(len(train)))}
    assert not seen & {bytes(image.flatten().tolist()) for image in test.images(torch.arange(len(test)))}


def test_pixels_span_the_range_and_resizing_keeps_their_mean() -> None:
    images = open_split(CONFIG, "test").images(torch.arange(355))
    assert images.min() == 0
    assert images.max() == 255
    larger = open_split(CONFIG.model_copy(update={"image_size": 32}), "test").images(torch.arange(355))
    assert abs(larger.float().mean() - images.float().mean()) < 2


def test_colour_is_refused() -> None:
    with pytest.raises(DataError, match=r"greyscale.*data\.channels=1"):
        open_split(DataConfig(source="digits", channels=3), "train")


def test_unknown_split_lists_those_there_are() -> None:
    with pytest.raises(DataError, match=r"'validation'.*train, test"):
        open_split(CONFIG, "validation")


def test_pixels_and_labels_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    table, bunch = _table(), load_digits()
    assert (table[:, :64].reshape(-1, 8, 8) == bunch.images).all()
    assert (table[:, 64] == bunch.target).all()
