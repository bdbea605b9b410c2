"""GPU kernels, on a CPU by Triton's interpreter; tests/cuda has them on a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

BODY = """
import torch
from cudd_core.models.kernels import statistics_gradient

for kind, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 2**-7)):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, 6, 9, generator=g).to(kind, memory_format=torch.channels_last)
    grad = torch.randn(5, 7, 6, 9, generator=g).to(kind)
    mean, grad_mean, grad_variance = (torch.randn(7, generator=g) for _ in range(3))
    given = x.float().requires_grad_()
    outputs = given, given.mean((0, 2, 3)), (given - mean.view(1, -1, 1, 1)).square().mean((0, 2, 3))
    (expected,) = torch.autograd.grad(outputs, given, (grad.float(), grad_mean, grad_variance))
    found = statistics_gradient(grad, x, mean, grad_mean, grad_variance)
    assert found.dtype == kind and found.stride() == x.stride()
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
print("the same")
"""


def test_gradient_of_statistics_is_what_autograd_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 (x − mean)/N is the gradient of the mean square around any fixed mean: of the variance, around its own."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", BODY], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr
