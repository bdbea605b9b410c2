"""Accuracy by class: how single classes, all images and the mean over classes relate."""

from __future__ import annotations

import math

import pytest
import torch

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.measurement import accuracy_of, measure, measure_together
from cudd_core.models.registry import build_network
from cudd_core.prediction import PREDICTED_TOGETHER
from cudd_core.records import NetworkRecord, NetworkSpec

RNG = torch.Generator().manual_seed(3)


def split_of(labels: torch.Tensor, classes: int) -> ArraySplit:
    """Return images that nobody looks at, with these labels."""
    return ArraySplit(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), labels, tuple("abcdefghij"[:classes]))


@pytest.mark.parametrize("classes", [1, 2, 7, 10])
def test_accuracy_is_the_mean_over_images_and_balanced_accuracy_the_mean_over_classes(classes: int) -> None:
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (83,), generator=RNG)])
    answers = torch.randint(classes, (len(labels),), generator=RNG, dtype=torch.int32)
    found = accuracy_of(answers, split_of(labels, classes))
    right = [bool(answer == label) for answer, label in zip(answers, labels, strict=True)]
    assert found.n == len(labels) and found.accuracy == sum(right) / len(labels)
    by_class = []
    for k in range(classes):
        of_k = [r for r, label in zip(right, labels, strict=True) if label == k]
        by_class.append(sum(of_k) / len(of_k))
    assert found.by_class.tolist() == by_class
    assert found.balanced == pytest.approx(sum(by_class) / classes)


def test_a_large_class_hides_a_small_one_in_the_mean_over_images_alone() -> None:
    labels = torch.tensor([0] * 98 + [1] * 2)
    found = accuracy_of(torch.zeros(100, dtype=torch.int32), split_of(labels, 2))
    assert found.accuracy == 0.98 and found.balanced == 0.5


def test_a_class_without_test_images_counts_in_neither_mean() -> None:
    labels = torch.tensor([0, 0, 2, 2])
    found = accuracy_of(torch.tensor([0, 1, 2, 2], dtype=torch.int32), split_of(labels, 3))
    assert math.isnan(found.by_class[1]) and found.balanced == found.accuracy == 0.75


def test_classes_of_equal_size_make_both_means_equal() -> None:
    labels = torch.arange(60) % 6
    found = accuracy_of(torch.randint(6, (60,), generator=RNG), split_of(labels, 6))
    assert found.balanced == pytest.approx(found.accuracy)


def test_networks_that_are_measured_together_are_as_accurate_as_alone() -> None:
    """Each in its own normalisation, over more images than are predicted at a time."""
    count = 2 * PREDICTED_TOGETHER + 20
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=RNG)
    split = ArraySplit(pixels, torch.randint(4, (count,), generator=RNG), tuple("abcd"))
    networks = []
    for seed, mean in enumerate((0.2, 0.8, 0.5)):
        spec = NetworkSpec("convnet1-w4", 4, 1, 8, (mean,), (0.1,), tuple("abcd"))
        networks.append(NetworkRecord(spec, build_network(spec.arch, 4, 1, 8, seed).state_dict()))
    runtime = Runtime(ComputeConfig())
    alone = [measure(network, split, runtime).accuracy for network in networks]
    together = measure_together(networks, split, runtime)
    assert together.n == count and together.values.tolist() == alone and len(set(alone)) == 3
