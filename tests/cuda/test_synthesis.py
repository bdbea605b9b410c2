"""Synthesis on a GPU: its kernels, and Eq. 6 made of them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cudd_core.compute import optimizers
from cudd_core.compute.gpu.kernels import gpu_kernels
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.models.committee import Committee
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.interface import Batch
from cudd_core.seeding import torch_rng

ROOT = Path(__file__).parents[2]
CLASSES, SIZE, IMAGES = 5, 32, 10


def test_kernels_give_what_torch_gives_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{':'.join(sys.path)}")
    command = [sys.executable, "-W", "error", str(ROOT / "tests/compute/gpu/synthesis_kernels.py"), "cuda"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr


def first_step(config: SynthesisConfig, teachers: int, where: Runtime) -> tuple[dict[str, float], Tensor]:
    """The terms of the first step and their gradient to the images."""
    networks = [
        where.network(freeze_batchnorm(build_network("convnet3-w16", CLASSES, 3, SIZE, k).eval().requires_grad_(False)))
        for k in range(teachers + 1)
    ]
    originals = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch_rng(0, "originals"))
    labels = torch.arange(IMAGES, device=where.device) % CLASSES
    batch = Batch(where.images(originals), labels, (0, "synthesize", 0, 0))
    with ExitStack() as stack:
        committee = Committee(networks[1:], ["teacher"] * teachers)
        objective = CuddObjective(committee, networks[0], config, where, stack)
        descent = objective.descent(batch)
        # A step first: while images are the originals, L_reg has no gradient.
        descent.images.data += 0.1 * where.images(torch.randn(originals.shape, generator=torch_rng(1, "step")))
        terms = descent.terms(*next(descent.inputs(0)))
        torch.stack(list(terms.values())).sum().backward()
        assert descent.images.grad is not None
        return {name: float(value.detach()) for name, value in terms.items()}, descent.images.grad.double().cpu()


@pytest.mark.parametrize("teachers", [1, 2])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"crops": "image", "weight_ce": 0.5, "first_bn_factor": 3.0},
        {"regularization": "feature"},
        {"teacher_correct_only": False, "weight_reg": 0.0},
        {"weight_adv": 0.0},
    ],
)
def test_eq6_is_that_of_a_cpu(fields: dict[str, Any], teachers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    config = SynthesisConfig(batch_size=IMAGES, **fields)
    here, there = (
        first_step(config, teachers, Runtime(ComputeConfig(device=kind, convolution="direct")))  # type: ignore[arg-type]
        for kind in ("cpu", "cuda")
    )
    assert here[0] == pytest.approx(there[0], rel=1e-4, abs=1e-6)
    # Where a value is nearly 0, ReLU may let it pass on one device only.
    assert float((here[1] - there[1]).norm() / here[1].norm()) < 0.01


def test_pixels_have_an_adam_of_their_own() -> None:
    kernels = gpu_kernels("adam")
    assert kernels is not None
    pixels = torch.zeros(2, 3, 4, 4, device="cuda", requires_grad=True)
    assert isinstance(optimizers.make(torch.optim.Adam, [pixels], 0.1, betas=(0.5, 0.9)), kernels.OneTensorAdam)
