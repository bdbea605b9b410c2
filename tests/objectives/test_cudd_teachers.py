"""Eq. 6 with several teachers: means of what each gives alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.errors import ModelError
from cudd_core.losses.adversarial import adversarial
from cudd_core.losses.bn_alignment import Statistics
from cudd_core.models.committee import Committee
from cudd_core.models.registry import build_network
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective

ARCHS = ("convnet2-w8", "resnet18")


def network(arch: str, seed: int = 0) -> nn.Module:
    return build_network(arch, 4, 3, 8, seed).eval().requires_grad_(False).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Views of synthetic images and of their originals, float64, and labels."""
    generator = torch.Generator().manual_seed(0)
    synthetic, originals = torch.randn(2, 6, 3, 8, 8, generator=generator, dtype=torch.float64)
    return synthetic.requires_grad_(), originals, torch.arange(6) % 4


def terms(
    members: Sequence[nn.Module],
    batch: tuple[Tensor, Tensor, Tensor],
    student: nn.Module | None = None,
    pools: Sequence[Statistics] = (),
    **fields: Any,
) -> dict[str, Tensor]:
    config = SynthesisConfig.model_validate({"weight_bn": 0.3, "weight_ce": 2.0} | fields)
    with ExitStack() as stack:
        committee = Committee(members, [f"teacher {number}" for number in range(len(members))])
        return dict(CuddObjective(committee, student, config, Runtime(ComputeConfig()), stack, pools).terms(*batch))


@pytest.mark.parametrize("regularization", ["pixel", "feature"])
def test_every_term_and_its_gradient_are_means_over_teachers(
    regularization: str, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    members = [network(arch) for arch in ARCHS]
    together = terms(members, batch, regularization=regularization)
    alone = [terms([member], batch, regularization=regularization) for member in members]
    assert set(together) == {"ce", "bn", "reg"}
    for name, value in together.items():
        expected = (alone[0][name] + alone[1][name]) / 2
        exact = value.dtype == torch.float64
        assert exact or name == "reg"  # features are float32
        torch.testing.assert_close(value, expected, rtol=1e-13 if exact else 1e-6, atol=0)
        ours, due = (torch.autograd.grad(each, batch[0], retain_graph=True)[0] for each in (value, expected))
        largest = float(due.abs().max())
        torch.testing.assert_close(ours, due, rtol=0, atol=(1e-12 if exact else 1e-6) * largest)


def test_the_adversarial_term_counts_where_their_mean_logits_are_right(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    synthetic, originals, _ = batch
    members, student = [network("convnet2-w8", seed) for seed in (1, 2, 3)], network("convnet1-w4")
    answers = torch.stack([member(synthetic) for member in members])
    # Labels for which no single teacher is right where all together are.
    labels = answers.mean(0).argmax(1)
    labels[::2] = (labels[::2] + 1) % 4
    right = answers.mean(0).argmax(1) == labels
    assert any(not torch.equal(answer.argmax(1) == labels, right) for answer in answers)
    found = terms(members, (synthetic, originals, labels), student)["adv"]
    torch.testing.assert_close(found, adversarial(student(synthetic).float(), labels, right), rtol=0, atol=0)


def test_each_draws_to_statistics_of_its_own(batch: tuple[Tensor, Tensor, Tensor]) -> None:
    members = [network(arch) for arch in ARCHS]
    config = SynthesisConfig()
    with ExitStack() as stack:
        watched = CuddObjective(Committee(members, ARCHS), None, config, Runtime(ComputeConfig()), stack)
        watched.teachers(batch[0])
        own = [[(m.detach(), v.detach()) for m, v in each.collect()] for each in watched.statistics]
    assert [len(pairs) for pairs in own] == [2, 20]
    assert float(terms(members, batch, pools=own)["bn"].detach()) == 0
    running = [[(m + 1, v) for m, v in pairs] for pairs in own]
    mixed = terms(members, batch, pools=[own[0], running[1]])["bn"]
    alone = terms(members[1:], batch, pools=running[1:])["bn"]
    torch.testing.assert_close(mixed, alone / 2, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("arch", "fields", "message"),
    [
        ("convnet2-w8-in", {}, "teacher 1 has no BatchNorm"),
        ("torchvision/squeezenet1_1", {"weight_bn": 0.0, "regularization": "feature"}, "teacher 1 has no linear head"),
    ],
)
def test_the_teacher_that_lacks_a_layer_is_named(arch: str, fields: dict[str, Any], message: str) -> None:
    """One that has it does not stand for the others."""
    odd = build_network(arch, 4, 3, 32, 0)
    with pytest.raises(ModelError, match=message):
        terms([network("convnet2-w8"), odd], (torch.zeros(1), torch.zeros(1), torch.zeros(1)), **fields)
