"""The direct transcription of Eq. 6 and ours are the same function."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch

from benchmarks.reference import ReferenceLoop, views
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.augment import resized_crop_warp
from cudd_core.data.normalizer import Normalizer
from cudd_core.models.committee import Committee
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.seeding import host_rng, torch_rng

CLASSES, SIZE, N = 5, 16, 10


@pytest.mark.parametrize("arch", ["convnet2-w16", "resnet18"])
def test_loss_and_gradient_are_the_reference_s(arch: str) -> None:
    """Same crops: the loss agrees to 1e-5 of itself, the gradient to 1e-4 of its largest value.

    In float64, but for the losses of logits and the weights of crops: in float32, Winograd's rounding (1e-5) turns over
    single ReLUs of ResNet-18 that are next to 0, and with each a piece of the gradient (5e-3 of its largest value).
    """
    runtime = Runtime(ComputeConfig())
    config = SynthesisConfig()
    normalizer = Normalizer((0.5, 0.4, 0.6), (0.25, 0.2, 0.3))
    pixels = torch.randint(0, 256, (N, 3, SIZE, SIZE), generator=torch_rng(0, "pixels"), dtype=torch.uint8)
    originals = normalizer(pixels).double()
    # Not the start itself, where L_reg is 0.
    start = normalizer.clamp_(originals + 0.3 * torch.randn(originals.shape, generator=torch_rng(0, "noise")))
    networks = [build_network(arch, CLASSES, 3, SIZE, seed).eval().requires_grad_(False).double() for seed in (0, 1)]
    with torch.no_grad():
        labels = networks[0](start).argmax(1)
    labels[: N // 2] = (labels[: N // 2] + 1) % CLASSES  # half are wrong: L_adv leaves them out
    low, high = ((bound - normalizer.mean.flatten()) / normalizer.std.flatten() for bound in (0, 1))
    reference = ReferenceLoop(networks[0], networks[1], originals, labels, low, high, config)
    with torch.no_grad():
        reference.images.copy_(start)
    own = [build_network(arch, CLASSES, 3, SIZE, seed).eval().requires_grad_(False).double() for seed in (0, 1)]
    with ExitStack() as stack:
        teacher, student = (runtime.network(freeze_batchnorm(network)) for network in own)
        objective = CuddObjective(Committee([teacher], [arch]), student, config, runtime, stack)
        for draw in range(3):
            view = next(views(config, SIZE, host_rng(draw, "view")))
            warp = resized_crop_warp(1, SIZE, config.crop_scale, config.flip, host_rng(draw, "view"), config.jitter)
            torch.testing.assert_close(warp(start), view(start), rtol=1e-5, atol=1e-5)
            images = runtime.images(start).clone().requires_grad_()
            terms = objective.terms(warp(images), warp(originals), labels)
            assert set(terms) == {"ce", "bn", "reg", "adv"}
            assert all(float(value.detach()) > 0 for value in terms.values())
            ours = torch.stack([term.double() for term in terms.values()]).sum()
            expected = reference.loss(view)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
            (gradient,) = torch.autograd.grad(ours, images)
            (reference_gradient,) = torch.autograd.grad(expected, reference.images)
            largest = float(reference_gradient.abs().max())
            torch.testing.assert_close(gradient, reference_gradient, rtol=0, atol=1e-4 * largest)
