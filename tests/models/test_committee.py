"""Several teachers as one network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.models.committee import Committee, Rescaled, restore_committee
from cudd_core.models.registry import build_network, restore_network
from cudd_core.records import NetworkRecord, NetworkSpec

SPEC = NetworkSpec("convnet2-w8", 4, 3, 8, (0.5, 0.4, 0.6), (0.25, 0.2, 0.3), ("a", "b", "c", "d"))
ARCHS = ("convnet2-w8", "convnet1-w4", "resnet18")


def record(arch: str, seed: int = 0, **changes: object) -> NetworkRecord:
    spec = replace(SPEC, arch=arch, **changes)  # type: ignore[arg-type]
    return NetworkRecord(spec, build_network(arch, 4, 3, 8, seed).state_dict())


def pixels(n: int = 5) -> Tensor:
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def images() -> Tensor:
    return Normalizer.of(SPEC)(pixels())


def test_its_answer_and_gradient_are_the_means_of_what_each_gives_alone() -> None:
    records = [record(arch) for arch in ARCHS]
    x = images().double().requires_grad_()
    committee = restore_committee(records).double()
    (gradient,) = torch.autograd.grad(committee(x).square().sum(), x)
    alone = [restore_network(each).double() for each in records]
    expected = sum(network(x) for network in alone) / 3
    (expected_gradient,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(committee(x), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-12, atol=1e-13)
    for answer, network in zip(committee.answers(x), alone, strict=True):
        assert torch.equal(answer, network(x))
    assert committee.names == ARCHS and not any(each.requires_grad for each in committee.parameters())


@pytest.mark.parametrize("amp", ["off", "bf16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_a_committee_of_one_is_that_teacher_bit_for_bit(arch: str, amp: str) -> None:
    runtime = Runtime(ComputeConfig.model_validate({"amp": amp}))
    x = runtime.images(images()).requires_grad_()
    answers = []
    for network in (restore_committee([record(arch)]), restore_network(record(arch))):
        with runtime.autocast():
            logits = runtime.network(network)(x)
        answers.append((logits.half(), *torch.autograd.grad(logits.float().square().sum(), x)))
    for ours, due in zip(*answers, strict=True):
        assert torch.equal(ours.contiguous().view(torch.uint8), due.contiguous().view(torch.uint8))


def test_even_the_sign_of_a_zero_is_left_alone() -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * -0.0

    assert torch.signbit(Committee([Nothing()], ["nothing"])(torch.ones(2, 3))).all()


def test_logits_in_half_precision_are_averaged_in_float32() -> None:
    class Constant(nn.Module):
        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), self.value, dtype=torch.bfloat16)

    mean = Committee([Constant(256.0), Constant(258.0), Constant(260.0)], "abc")(torch.zeros(1, 1))
    assert mean.dtype == torch.float32
    mean = Committee([Constant(256.0), Constant(258.0)], "ab")(torch.zeros(1, 1))
    assert mean.tolist() == [[257.0, 257.0]]  # which bfloat16 has not


def test_each_member_sees_images_normalised_its_own_way() -> None:
    other = record("convnet1-w4", mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    committee = restore_committee([record("convnet2-w8"), other])
    assert isinstance(committee.members[1], Rescaled) and not isinstance(committee.members[0], Rescaled)
    own = restore_network(other)(Normalizer.of(other.spec)(pixels()))
    torch.testing.assert_close(committee.answers(images())[1], own, rtol=1e-5, atol=1e-5)


def test_normalisations_alike_cost_nothing() -> None:
    committee = restore_committee([record("convnet2-w8"), record("convnet2-w8", seed=1)])
    assert not any(isinstance(module, Rescaled) for module in committee.modules())
