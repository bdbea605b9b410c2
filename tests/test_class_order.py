"""Teachers whose outputs have another order of classes than the data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cudd_core.class_order import exchanged_classes, in_order, names_of_outputs
from cudd_core.models.registry import build_network, restore_network
from cudd_core.records import NetworkRecord, NetworkSpec

NAMES = ("amber", "blue", "cyan", "dove", "ebony")
LABELS = torch.arange(5).repeat_interleave(40)


def answers(order: list[int], share_right: float) -> Tensor:
    """Answers of a network whose output for class k is order[k]; the rest of its answers go round the classes."""
    generator = torch.Generator().manual_seed(0)
    wrong = torch.rand(len(LABELS), generator=generator) >= share_right
    return torch.where(wrong, torch.arange(len(LABELS)) % 5, torch.tensor(order)[LABELS])


@pytest.mark.parametrize("share_right", [0.7, 0.9, 1.0])
@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([0, 1, 2, 3, 4], {}),
        ([1, 0, 2, 3, 4], {0: 1, 1: 0}),
        ([1, 2, 0, 3, 4], {0: 1, 1: 2, 2: 0}),
        ([1, 0, 3, 2, 4], {0: 1, 1: 0, 2: 3, 3: 2}),
        ([4, 0, 1, 2, 3], {0: 4, 1: 0, 2: 1, 3: 2, 4: 3}),
    ],
)
def test_exchanged_classes_are_found(order: list[int], expected: dict[int, int], share_right: float) -> None:
    assert exchanged_classes(answers(order, share_right), LABELS, 5) == expected


def test_a_bad_network_has_exchanged_nothing() -> None:
    collapsed = torch.zeros(len(LABELS), dtype=torch.int64)
    one_taken_for_another = torch.where(LABELS == 1, 0, LABELS)
    # Half of each of two classes is taken for the other: twins, not a wrong order.
    twins = torch.where((LABELS < 2) & (torch.arange(len(LABELS)) % 2 == 0), 1 - LABELS, LABELS)
    chance = torch.randint(5, (len(LABELS),), generator=torch.Generator().manual_seed(0))
    for given in (collapsed, one_taken_for_another, twins, chance):
        assert exchanged_classes(given, LABELS, 5) == {}


@pytest.mark.parametrize("images", [(8, 80), (80, 8)])
def test_classes_of_unequal_size_are_found_too(images: tuple[int, int]) -> None:
    """Each class's share is one of its own images."""
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(images)])
    assert exchanged_classes(1 - labels, labels, 3) == {0: 1, 1: 0}


def test_half_of_a_class_is_most_of_it() -> None:
    labels = torch.arange(3).repeat_interleave(8)
    answers = torch.tensor([1, 1, 1, 1, 0, 0, 2, 2] + [0, 0, 0, 0, 1, 1, 2, 2] + [2] * 8)
    assert exchanged_classes(answers, labels, 3) == {0: 1, 1: 0}
    answers[0] = 0  # one less than half, and more than a quarter right
    assert exchanged_classes(answers, labels, 3) == {}


def test_classes_without_images_are_passed_over() -> None:
    labels = torch.tensor([0, 1]).repeat_interleave(5)
    assert exchanged_classes(1 - labels, labels, 4) == {0: 1, 1: 0}


@pytest.mark.parametrize(("images", "classes"), [(1, 1000), (2, 1000), (4, 1000), (5, 1000), (5, 10_450), (50, 10_450)])
def test_a_network_that_guesses_has_exchanged_nothing_however_few_images_there_are(images: int, classes: int) -> None:
    labels = torch.arange(classes).repeat_interleave(images)
    guesses = torch.randint(classes, (len(labels),), generator=torch.Generator().manual_seed(0))
    assert exchanged_classes(guesses, labels, classes) == {}


def test_names_of_outputs_bring_a_network_into_order() -> None:
    """What the error of an exchanged order proposes is what puts it right."""
    order = [1, 2, 0, 3, 4]
    spec = NetworkSpec("convnet1-w8", 5, 3, 8, (0.5,) * 3, (0.5,) * 3, NAMES)
    right = NetworkRecord(spec, build_network("convnet1-w8", 5, 3, 8, seed=0).state_dict())
    shuffled = {name: value.clone() for name, value in right.state.items()}
    for part in ("weight", "bias"):
        shuffled[f"head.{part}"][order] = right.state[f"head.{part}"]
    told = replace(spec, class_names=names_of_outputs(NAMES, {k: v for k, v in enumerate(order) if k != v}))
    found = in_order(NetworkRecord(told, shuffled), NAMES)
    assert found.spec == spec
    assert all(torch.equal(found.state[name], value) for name, value in right.state.items())


@pytest.mark.parametrize("arch", ["convnet1-w8", "resnet18-w4", "torchvision/mobilenet_v2"])
def test_outputs_are_put_in_order_by_name_and_others_left_out(arch: str) -> None:
    spec = NetworkSpec(arch, 5, 3, 32, (0.5,) * 3, (0.5,) * 3, NAMES)
    whole = NetworkRecord(spec, build_network(arch, 5, 3, 32, seed=0).state_dict())
    part = in_order(whole, ("dove", "amber", "cyan"))
    assert (part.spec.num_classes, part.spec.class_names) == (3, ("dove", "amber", "cyan"))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = restore_network(whole)(images)[:, [3, 0, 2]]
        assert torch.allclose(restore_network(part)(images), expected, atol=1e-5)


def test_what_cannot_be_put_in_order_stays() -> None:
    spec = NetworkSpec("torchvision/squeezenet1_0", 3, 3, 64, (0.5,) * 3, (0.5,) * 3, ("a", "b", "c"))
    convolution = NetworkRecord(spec, build_network(spec.arch, 3, 3, 64, seed=0).state_dict())
    assert in_order(convolution, ("b", "a", "c")) is convolution
    assert in_order(convolution, ("a", "b", "d")) is convolution  # a name that it does not know
    named_twice = NetworkSpec("convnet1-w4", 3, 3, 8, (0.5,) * 3, (0.5,) * 3, ("a", "a", "c"))
    twice = NetworkRecord(named_twice, build_network("convnet1-w4", 3, 3, 8, seed=0).state_dict())
    assert in_order(twice, ("a", "c")) is twice  # which of the two is not known


def test_a_network_with_two_heads_stays() -> None:
    """It answers with the mean of both, and to reorder the last one alone would mix up its classes."""
    arch, names = "timm/deit_tiny_distilled_patch16_224", ("a", "b", "c")
    spec = NetworkSpec(arch, 3, 3, 224, (0.5,) * 3, (0.5,) * 3, names)
    two = NetworkRecord(spec, build_network(arch, 3, 3, 224, seed=0).state_dict())
    assert {"head.weight", "head_dist.weight"} <= two.state.keys()
    assert in_order(two, ("b", "a", "c")) is two
