"""Kernels of synthesis against float64, and Eq. 6 made of them against torch.

A program, because Triton reads whether to interpret when it is imported:

python tests/compute/gpu/synthesis_kernels.py DEVICE        "cpu" with TRITON_INTERPRET=1, or "cuda"
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cudd_core.compute.gpu import adam as gpu_adam
from cudd_core.compute.gpu import losses as gpu_losses
from cudd_core.compute.gpu import warp as gpu_warp
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.augment import Warp, resized_crop_warp
from cudd_core.losses.adversarial import adversarial
from cudd_core.losses.bn_alignment import bn_alignment
from cudd_core.models.committee import Committee
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.interface import Batch
from cudd_core.seeding import host_rng, torch_rng

DEVICE = torch.device(sys.argv[1])
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch_rng(sum(shape), "values")).to(DEVICE)


def gradients(outputs: Sequence[Tensor], given: Tensor, grads: Sequence[Tensor]) -> Tensor:
    (found,) = torch.autograd.grad(outputs, given, grads, retain_graph=True)
    return found


def check_warp(n: int, channels: int, size: int, crops: int, kind: torch.dtype) -> None:
    """One crop for all or one each; a side that is no power of two; every combination of gradients."""
    warp = resized_crop_warp(crops, size, (0.08, 1.0), True, host_rng(0, "warp"), min(4, size - 1), DEVICE)
    images, originals = (
        normal(n, channels, size, size).add(k).contiguous(memory_format=torch.channels_last) for k in range(2)
    )
    images.requires_grad_()
    exact, plain = images.detach().double().requires_grad_(), Warp(warp.rows.double(), warp.columns.double())
    view = plain(exact)
    error = (view - plain(originals.double())).square().mean()

    found = gpu_warp.warp(images, originals, warp.rows, warp.columns, kind)
    assert torch.equal(found[0], found[1]) and found[0].dtype == kind and found[0].stride() == images.stride()
    torch.testing.assert_close(found[0].double(), view, rtol=TOLERANCE[kind], atol=TOLERANCE[kind])
    torch.testing.assert_close(found[2].double(), error, rtol=1e-5, atol=1e-6)

    grads = normal(n, channels, size, size).to(kind), normal(n, channels, size, size).mul(2).to(kind), normal(1)[0]
    for asked in product((False, True), repeat=3):
        if any(asked):
            chosen = [k for k in range(3) if asked[k]]
            ours = gradients([found[k] for k in chosen], images, [grads[k] for k in chosen])
            expected = gradients([(view, view, error)[k] for k in chosen], exact, [grads[k].double() for k in chosen])
            torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-4)


def check_losses(members: int, n: int, classes: int, kind: torch.dtype, scale: float) -> None:
    """Also sure networks, whose wrong classes have no weight in float32, and labels that the teachers miss."""
    answers, logits = (
        (normal(*shape) * scale).to(kind).requires_grad_() for shape in ((members, n, classes), (n, classes))
    )
    labels = torch.arange(n, device=DEVICE) * 3 % classes
    with torch.no_grad():
        answers[:, 0, labels[0]] += 1000
    exact_answers, exact_logits = (each.detach().double().requires_grad_() for each in (answers, logits))
    right = exact_answers.detach().mean(0).argmax(1) == labels
    assert right.any() and (n == 1 or not right.all())
    for found, expected, given, exact in (
        (
            gpu_losses.cross_entropy(answers, labels),
            cross_entropy(exact_answers.flatten(0, 1), labels.repeat(members)),
            answers,
            exact_answers,
        ),
        (
            gpu_losses.adversarial(logits, labels, answers),
            adversarial(exact_logits, labels, right),
            logits,
            exact_logits,
        ),
        (gpu_losses.adversarial(logits, labels, None), adversarial(exact_logits, labels), logits, exact_logits),
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
        three = torch.tensor(3.0, device=DEVICE)
        ours = gradients([found], given, [three])
        assert ours.dtype == kind
        torch.testing.assert_close(
            ours.double(), gradients([expected], exact, [three.double()]), rtol=TOLERANCE[kind], atol=1e-6
        )


def check_bn_alignment() -> None:
    """Layers wider than a block; a mean and a variance that are met exactly, where the gradient is zero."""
    widths = (3, 2000, 64)
    batch, target = ([(normal(k, w)[0] + k, normal(w, 2)[:, 0] * k) for w in widths] for k in (1, 2))
    batch[0] = tuple(each.clone() for each in target[0])
    leaves = [each.requires_grad_() for pair in batch for each in pair]
    exact = [each.detach().double().requires_grad_() for each in leaves]
    found = gpu_losses.BatchNormAlignment(target, 10.0)(batch)
    expected = bn_alignment(
        list(zip(exact[::2], exact[1::2], strict=True)), [(m.double(), v.double()) for m, v in target], 10.0
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    ours, plain = torch.autograd.grad(found, leaves), torch.autograd.grad(expected, exact)
    assert all(not each.any() for each in ours[:2]) and all(each.any() for each in ours[2:])
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)


def check_adam(betas: tuple[float, float], weight_decay: float) -> None:
    """Gradients of either layout; a learning rate that changes."""
    values = normal(3, 3, 7, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    exact = values.detach().double().clone().requires_grad_()
    settings = {"betas": betas, "eps": 1e-8, "weight_decay": weight_decay}
    rate = torch.tensor(0.1, device=DEVICE)
    ours = gpu_adam.OneTensorAdam(values, lr=rate, capturable=True, **settings)
    plain = torch.optim.Adam([exact], lr=0.1, **settings)
    for step in range(30):
        grad = normal(3, 3, 7, 7).roll(step)
        values.grad = grad.contiguous(memory_format=torch.channels_last) if step % 2 else grad
        exact.grad = grad.double()
        ours.param_groups[0]["lr"].fill_(0.1 * (1 - step / 40))
        plain.param_groups[0]["lr"] = 0.1 * (1 - step / 40)
        ours.step()
        plain.step()
        torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-5)
    assert ours.state_dict()["state"].keys() == plain.state_dict()["state"].keys()
    assert ours.state[values].keys() == plain.state[exact].keys() and float(ours.state[values]["step"]) == 30


def first_step(config: SynthesisConfig, teachers: int, by_kernels: bool) -> tuple[dict[str, Tensor], Tensor]:
    """The terms of Eq. 6 and their gradient, by kernels as on a GPU or by torch."""
    where = Runtime(ComputeConfig(convolution="direct"))
    networks = [
        where.network(freeze_batchnorm(build_network("convnet2-w8", 5, 3, 16, k).eval().requires_grad_(False)))
        for k in range(teachers + 1)
    ]
    originals = where.images(normal(10, 3, 16, 16))
    with ExitStack() as stack:
        objective = CuddObjective(Committee(networks[1:], ["a teacher"] * teachers), networks[0], config, where, stack)
        if by_kernels:
            objective._views, objective._losses = gpu_warp, gpu_losses
            objective.alignments = [objective._alignment(each.running) for each in objective.statistics]
        descent = objective.descent(Batch(originals, torch.arange(10) % 5, (0, "synthesize", 0, 0)))
        # A step first: while images are the originals, L_reg has no gradient.
        descent.images.data += 0.1 * where.images(normal(10, 3, 16, 16).roll(1))
        terms = descent.terms(*next(descent.inputs(0)))
        torch.stack(list(terms.values())).sum().backward()
        assert descent.images.grad is not None
        return {name: value.detach() for name, value in terms.items()}, descent.images.grad


def check_eq6(teachers: int, **fields: Any) -> None:
    config = SynthesisConfig(batch_size=10, **fields)
    ours, plain = (first_step(config, teachers, by_kernels) for by_kernels in (True, False))
    torch.testing.assert_close(ours[0], plain[0], rtol=1e-5, atol=1e-6)
    assert float((ours[1] - plain[1]).norm() / plain[1].norm()) < 1e-5


for kind in TOLERANCE:
    for warp_case in ((3, 3, 32, 1), (3, 3, 32, 3), (2, 1, 28, 1), (2, 3, 33, 2), (1, 1, 1, 1), (2, 3, 64, 1)):
        check_warp(*warp_case, kind)
    for losses_case in ((1, 5, 10), (3, 4, 7), (1, 1, 2), (2, 6, 300), (1, 3, 1030)):
        for scale in (1.0, 40.0):
            check_losses(*losses_case, kind, scale)
check_bn_alignment()
for betas, weight_decay in product(((0.5, 0.9), (0.9, 0.999)), (0.0, 0.01)):
    check_adam(betas, weight_decay)
if DEVICE.type == "cpu":  # a GPU has tests/cuda/test_synthesis.py
    for teachers in (1, 2):
        check_eq6(teachers, crops="image", weight_ce=0.5, first_bn_factor=3.0)
        check_eq6(teachers, regularization="feature", teacher_correct_only=False)
    check_eq6(1, weight_reg=0.0)
    check_eq6(1, weight_adv=0.0)
for module in (gpu_adam, gpu_losses, gpu_warp):
    module.check(DEVICE)
print("the same")
