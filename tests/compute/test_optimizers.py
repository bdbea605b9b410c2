"""On a CPU all parameters go through an operation in one call. That is no other arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cudd_core.compute import optimizers
from cudd_core.models.registry import build_network
from cudd_core.seeding import torch_rng

CASES = [
    (torch.optim.AdamW, {"weight_decay": 0.01}),
    (torch.optim.Adam, {"betas": (0.5, 0.9)}),
    (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4}),
]


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_steps_on_a_cpu_have_the_bits_of_torchs_default(kind: Any, settings: dict[str, Any]) -> None:
    ours, plain = (
        build_network("convnet2-w8", 4, 3, 8, seed=0).to(memory_format=torch.channels_last) for _ in range(2)
    )
    steps = optimizers.make(kind, ours.parameters(), 0.1, **settings), kind(plain.parameters(), lr=0.1, **settings)
    assert steps[0].defaults["foreach"] and not steps[1].defaults["foreach"]
    noise = torch_rng(0, "gradients")
    for _ in range(5):
        for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=noise)
            other.grad = one.grad.clone()
        for optimizer in steps:
            optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours.parameters(), plain.parameters(), strict=True))
