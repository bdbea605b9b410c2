"""GPU kernels, on a CPU by Triton's interpreter; tests/cuda has them on a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

BODY = """
import torch
from torch.nn.functional import batch_norm
from cudd_core.compute.gpu_batchnorm import gradient, normalise

for shape in ((5, 7, 6, 9), (1, 1, 1, 1), (33, 70, 4, 4), (3, 16, 1, 86)):
    for kind, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2**-7)):
        g = torch.Generator().manual_seed(0)
        x = (torch.randn(shape, generator=g) * 3 + 20).to(kind).contiguous(memory_format=torch.channels_last)
        grad = torch.randn(shape, generator=g).to(kind)
        running_mean, weight, bias, grad_mean, grad_variance = torch.randn(5, shape[1], generator=g)
        running_variance = torch.rand(shape[1], generator=g) + 0.1
        given = x.double().requires_grad_()
        y = batch_norm(given, *(v.double() for v in (running_mean, running_variance, weight, bias)), eps=1e-5)
        mean, variance = given.mean((0, 2, 3)), given.var((0, 2, 3), unbiased=False)

        found = normalise(x, running_mean, running_variance, weight, bias, 1e-5)
        assert found[0].dtype == kind and found[0].stride() == x.stride()
        torch.testing.assert_close(found[0].double(), y, rtol=tolerance, atol=10 * tolerance)
        torch.testing.assert_close(found[1].double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found[2].double(), variance, rtol=1e-5, atol=1e-4)

        for watched in (False, True):
            outputs, grads = (y, mean, variance), (grad.double(), grad_mean.double(), grad_variance.double())
            last = 3 if watched else 1
            (expected,) = torch.autograd.grad(outputs[:last], given, grads[:last], retain_graph=True)
            statistics = (x, found[1], grad_mean, grad_variance) if watched else None
            ours = gradient(grad, running_variance, weight, 1e-5, statistics)
            assert ours.dtype == kind and ours.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(ours.double(), expected, rtol=tolerance, atol=tolerance)
print("the same")
"""


def test_kernels_give_what_torch_gives_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a batch of one value, channels that fill no block, and a mean far from zero, where squares would cancel."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", BODY], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr
