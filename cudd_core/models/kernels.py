"""GPU kernels for what torch does in several passes over a batch of activations.

Imported only where there is a GPU: Triton comes with torch for CUDA alone.
"""

# No postponed annotations: Triton reads them.
import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


def statistics_gradient(grad: Tensor, x: Tensor, mean: Tensor, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
    """Return grad + ∂mean/∂x · grad_mean + ∂variance/∂x · grad_variance, of the kind of `x`, in one pass.

    `x` and `grad` [n, c, H, W], less than 2³¹ values, `x` channels last; the rest float32 [c]. With N the values of a
    channel it is grad + grad_mean / N + 2 (x − mean) · grad_variance / N, computed in float32.
    """
    grad = grad.contiguous(memory_format=torch.channels_last)
    result = torch.empty_like(x)
    channels, total = x.shape[1], x.numel()
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _add_statistics_gradient[(triton.cdiv(total, _BLOCK),)](
            *(grad, x, mean, grad_mean, grad_variance, result, total, channels, channels / total), BLOCK=_BLOCK
        )
    return result


@triton.jit  # type: ignore[untyped-decorator]
def _add_statistics_gradient(  # type: ignore[no-untyped-def]
    grad,
    x,
    mean,
    grad_mean,
    grad_variance,
    result,
    total,
    channels,
    share,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < total
    channel = place % channels
    value = tl.load(x + place, mask=inside).to(tl.float32) - tl.load(mean + channel, mask=inside)
    added = tl.load(grad_mean + channel, mask=inside) + 2.0 * value * tl.load(grad_variance + channel, mask=inside)
    given = tl.load(grad + place, mask=inside).to(tl.float32)
    tl.store(result + place, given + added * share, mask=inside)
