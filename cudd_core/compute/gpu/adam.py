"""Adam over one tensor on a GPU in two kernels; torch's fused one gives a multiprocessor 65,536 values, so most idle.

Import this only on a machine with a GPU: Triton comes only with torch for CUDA.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_VALUES = 1024


class OneTensorAdam(torch.optim.Adam):
    """`torch.optim.Adam` of a single float32 tensor, dense in memory; the same state, and values up to rounding.

    Its step can be recorded: learning rate (a tensor) and number of steps are on the GPU. `settings` are those of Adam.
    """

    def __init__(self, tensor: Tensor, **settings: Any) -> None:
        super().__init__([tensor], foreach=False, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step."""
        assert closure is None
        (group,) = self.param_groups
        (values,) = group["params"]
        if values.grad is None:
            return
        state = self.state[values]
        if not state:
            state["step"] = torch.zeros((), device=values.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(values), torch.zeros_like(values)
        state["step"].add_(1)
        # Like the values in memory: the kernel goes through both in order.
        grad = torch.empty_like(values).copy_(values.grad) if values.grad.stride() != values.stride() else values.grad
        with torch.cuda.device_of(values):
            _step[(triton.cdiv(values.numel(), _VALUES),)](
                *(values, grad, state["exp_avg"], state["exp_avg_sq"], state["step"], group["lr"]),
                *(*group["betas"], group["eps"], group["weight_decay"], values.numel()),
                VALUES=_VALUES,
            )


def check(device: torch.device) -> None:
    """Build and run the kernel."""
    values = torch.ones(1, device=device, requires_grad=True)
    values.grad = torch.ones(1, device=device)
    OneTensorAdam(values, lr=torch.ones((), device=device), capturable=True).step()


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]
    values,
    grads,
    means,
    squares,
    steps,
    learning_rate,
    beta1,
    beta2,
    eps,
    weight_decay,
    total,
    VALUES: tl.constexpr,
):
    place = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    inside = place < total
    value = tl.load(values + place, mask=inside)
    grad = tl.load(grads + place, mask=inside) + weight_decay * value
    before = tl.load(means + place, mask=inside)
    mean = before + (1.0 - beta1) * (grad - before)
    square = beta2 * tl.load(squares + place, mask=inside) + (1.0 - beta2) * grad * grad
    step = tl.load(steps)
    # 1 − βᵗ
    first, second = 1.0 - tl.exp2(step * tl.log2(beta1)), 1.0 - tl.exp2(step * tl.log2(beta2))
    size = tl.load(learning_rate) / first
    value -= size * mean / (tl.sqrt(square) / tl.sqrt(second) + eps)
    tl.store(means + place, mean, mask=inside)
    tl.store(squares + place, square, mask=inside)
    tl.store(values + place, value, mask=inside)
