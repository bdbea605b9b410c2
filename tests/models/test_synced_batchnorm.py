"""BatchNorm over a shared batch, in float64, by processes that are threads here."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from cudd_core.compute.ranks import Ranks
from cudd_core.errors import ModelError
from cudd_core.models.synced_batchnorm import SyncedBatchNorm, sync_batchnorm


class Table:
    """Where threads lay down what they have, and take up what all have."""

    def __init__(self, size: int) -> None:
        self.barrier = threading.Barrier(size, timeout=60)
        self.laid: list[Tensor] = [torch.empty(0)] * size


class ThreadRanks(Ranks):
    def __init__(self, rank: int, table: Table) -> None:
        super().__init__(rank, len(table.laid))
        self.table = table

    def gather(self, values: Tensor) -> Tensor:
        self.table.laid[self.rank] = values.clone()
        self.table.barrier.wait()
        found = torch.stack(self.table.laid)
        self.table.barrier.wait()
        return found

    def sum(self, values: Tensor) -> Tensor:
        return values.copy_(self.gather(values).sum(0))


def together(size: int, body: Callable[[Ranks], Any]) -> list[Any]:
    """Return what `body` does in each of `size` processes."""
    table = Table(size)
    with ThreadPoolExecutor(size) as pool:
        return [done.result() for done in [pool.submit(body, ThreadRanks(rank, table)) for rank in range(size)]]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "2d": lambda: nn.BatchNorm2d(3),
    "1d": lambda: nn.BatchNorm1d(3),
    "3d": lambda: nn.BatchNorm3d(3),
    "plain": lambda: nn.BatchNorm2d(3, affine=False),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "nothing remembered": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "timm": lambda: BatchNormAct2d(3),
}
SHAPES = {"1d": (), "3d": (2, 2, 2)}


@pytest.mark.parametrize(("n", "size"), [(5, 2), (7, 3), (4, 4), (2, 3)])
@pytest.mark.parametrize("kind", LAYERS)
def test_parts_together_are_the_batch_forward_and_backward(kind: str, n: int, size: int) -> None:
    """Uneven parts, one image each, and fewer images than processes; two batches, so that running statistics move."""
    generator = torch.Generator().manual_seed(0)
    whole = LAYERS[kind]().double()
    for parameter in whole.parameters():
        nn.init.uniform_(parameter, 0.5, 2.0, generator=generator)
    batches = [
        3 * torch.randn(n, 3, *SHAPES.get(kind, (4, 4)), generator=generator, dtype=torch.float64) + 10
        for _ in range(2)
    ]
    towards = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in batches]
    layers = [copy.deepcopy(whole) for _ in range(size)]

    def body(ranks: Ranks) -> list[tuple[Tensor, Tensor]]:
        layer = layers[ranks.rank]
        sync_batchnorm(layer, ranks)
        found = []
        for x, target in zip(batches, towards, strict=True):
            part = ranks.take(n)
            mine = part.of(x).clone().requires_grad_()
            y = layer(mine)
            # A mean over images, as every loss of training is.
            ((y * part.of(target)).flatten(1).sum(1).mean() * part.weight).backward()
            found.append((y.detach(), mine.grad))
        return found

    parts = together(size, body)
    expected = []
    for x, target in zip(batches, towards, strict=True):
        x.requires_grad_()
        y = whole(x)
        (y * target).flatten(1).sum(1).mean().backward()
        expected.append((y.detach(), x.grad))
    for step, (y, gradient) in enumerate(expected):
        if n >= size:
            assert torch.allclose(torch.cat([found[step][0] for found in parts]), y, rtol=1e-10, atol=1e-12)
            assert torch.allclose(torch.cat([found[step][1] for found in parts]), gradient, rtol=1e-9, atol=1e-11)
        else:
            assert all(torch.allclose(found[step][0], y, rtol=1e-10, atol=1e-12) for found in parts)
            assert torch.allclose(sum(found[step][1] for found in parts), gradient, rtol=1e-9, atol=1e-11)
    for name, parameter in whole.named_parameters():
        summed = sum(layer.get_parameter(name).grad for layer in layers)  # type: ignore[misc]
        assert torch.allclose(summed, parameter.grad, rtol=1e-9, atol=1e-11)  # type: ignore[arg-type]
    for layer in layers:
        assert layer.state_dict().keys() == whole.state_dict().keys()
        for name, value in whole.named_buffers():
            assert torch.allclose(layer.get_buffer(name), value, rtol=1e-10, atol=1e-12)


def test_eval_mode_is_torch_s_and_asks_nobody() -> None:
    whole = nn.BatchNorm2d(3).eval()
    layer = copy.deepcopy(whole)
    sync_batchnorm(layer, Ranks(0, 2))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert isinstance(layer, SyncedBatchNorm) and torch.equal(layer(x), whole(x))


def test_half_precision_and_channels_last_go_in_and_come_out() -> None:
    x = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last)

    def body(ranks: Ranks) -> tuple[Tensor, Tensor]:
        layer = nn.BatchNorm2d(3)
        sync_batchnorm(layer, ranks)
        part = ranks.take(4)
        mine = part.of(x).clone().requires_grad_()
        y = layer(mine)
        y.float().square().mean().backward()
        return y, mine.grad

    whole = nn.BatchNorm2d(3)(x.float())
    for number, (y, gradient) in enumerate(together(2, body)):
        assert y.dtype == gradient.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert gradient.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(y.float(), whole[2 * number : 2 * number + 2], atol=0.02)


class Odd(nn.BatchNorm2d):
    pass


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ModelError, match=r"kind Odd.*compute\.data_parallel=1"):
        sync_batchnorm(nn.Sequential(Odd(3)), Ranks(0, 2))
