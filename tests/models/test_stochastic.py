"""Dropout and stochastic depth from streams of their own."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torchvision.ops import StochasticDepth

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.errors import ModelError
from cudd_core.models.stochastic import SeededDrop, begin_epoch, seed_stochastic_layers
from cudd_core.training import Checkpointing, TrainingConfig, fit

X = torch.ones(400, 10, 2, 2)


def seeded(layer: nn.Module, seed: int = 0) -> nn.Module:
    network = nn.Sequential(nn.Identity(), layer)
    seed_stochastic_layers(network, seed, "test")
    return network.train()


@pytest.mark.parametrize(
    ("layer", "parts", "scaled"),
    [
        (nn.Dropout(0.25), X.numel(), True),
        (nn.Dropout2d(0.25), 4000, True),
        (StochasticDepth(0.25, "row"), 400, True),
        (DropPath(0.25), 400, True),
        (DropPath(0.25, scale_by_keep=False), 400, False),
    ],
)
def test_each_layer_drops_what_the_library_s_drops(layer: nn.Module, parts: int, scaled: bool) -> None:
    """Zero or one factor, over the same parts, with the same expectation; in eval mode nothing."""
    kept = 4 / 3 if scaled else 1.0
    for network in (nn.Sequential(nn.Identity(), layer).train(), seeded(copy.deepcopy(layer))):
        y = network(X)
        assert y.unique().tolist() == pytest.approx([0.0, kept])
        groups = y.reshape(parts, -1)
        assert bool((groups == groups[:, :1]).all())
        share = float((groups[:, 0] == 0).float().mean())
        assert abs(share - 0.25) < 5 * (0.25 * 0.75 / parts) ** 0.5
        assert torch.equal(network.eval()(X), X)


def test_a_whole_batch_is_dropped_together() -> None:
    network = seeded(StochasticDepth(0.5, "batch"))
    sums = {float(network(X).sum()) for _ in range(20)}
    assert sums == {0.0, 2.0 * X.numel()}


def test_probabilities_zero_and_one() -> None:
    network = seeded(nn.Dropout(0.0))
    assert type(network[1]) is nn.Dropout and torch.equal(network(X), X)
    assert not seeded(nn.Dropout(1.0))(X).any()


def test_gradients_pass_where_values_do() -> None:
    network, x = seeded(nn.Dropout(0.25)), X.clone().requires_grad_()
    y = network(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_streams_depend_on_seed_layer_and_epoch_and_on_nothing_else() -> None:
    state = torch.get_rng_state()
    network = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    seed_stochastic_layers(network, 0, "test")
    first, second = network[0](X), network[1](X)
    assert not torch.equal(first, second)
    assert not torch.equal(first, network[0](X))
    begin_epoch(network, 0)
    assert torch.equal(first, network[0](X))
    begin_epoch(network, 1)
    assert not torch.equal(first, network[0](X))
    other = nn.Sequential(nn.Dropout(0.5))
    seed_stochastic_layers(other, 1, "test")
    assert not torch.equal(first, other(X))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "layer", [nn.AlphaDropout(0.1), nn.RReLU(), nn.FractionalMaxPool2d(2, 2), nn.MultiheadAttention(4, 1, dropout=0.1)]
)
def test_other_random_layers_are_refused(layer: nn.Module) -> None:
    with pytest.raises(ModelError, match=rf"test has a layer {type(layer).__name__} that draws at random"):
        seeded(layer)


def test_layers_that_do_not_draw_stay() -> None:
    network = nn.Sequential(
        nn.AlphaDropout(0.0), nn.MultiheadAttention(4, 1), StochasticDepth(0.0, "row"), DropPath(0.0)
    )
    seed_stochastic_layers(network, 0, "test")
    assert not any(isinstance(module, SeededDrop) for module in network.modules())


class Batches:
    steps_per_epoch = 3

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(number)
        for _ in range(3):
            yield torch.randn(8, 1, 3, 3, generator=generator), torch.randn(8, 4, generator=generator)


def trained(checkpoints: Path | None = None, stop_after: int | None = None) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(9, 16), nn.Dropout(0.5), nn.Linear(16, 4))
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    seed_stochastic_layers(network, 7, "test")

    def progress(done: int, total: int, _: object) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    config = TrainingConfig(epochs=5, batch_size=8)
    where = Checkpointing(checkpoints, every=2) if checkpoints else None
    fit(network, Batches(), mse_loss, config, Runtime(ComputeConfig()), checkpointing=where, progress=progress)
    return list(network.state_dict().values())


def test_training_repeats_after_a_kill_and_in_company(tmp_path: Path) -> None:
    expected = trained()
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_after=3)
    assert (tmp_path / "checkpoint.safetensors").exists()
    results = [trained(tmp_path)]
    threads = [threading.Thread(target=lambda: results.append(trained())) for _ in range(3)]
    for thread in threads:
        thread.start()
        torch.rand(100)
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for result in results:
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))
