"""The one training loop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from cudd_core.averaging import Average
from cudd_core.checkpoints import read_checkpoint
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.errors import Cancelled, ConfigError
from cudd_core.models.registry import build_network
from cudd_core.models.stochastic import seed_stochastic_layers
from cudd_core.progress import CONTINUED, Progress
from cudd_core.seeding import seeded_construction, torch_rng
from cudd_core.training import Checkpointing, TrainingConfig, cosine, fit


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(ComputeConfig())


class Toy:
    """Two classes apart in their mean; an epoch is a function of its number."""

    steps_per_epoch = 3

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch_rng(0, "toy", number)
        for _ in range(self.steps_per_epoch):
            labels = torch.randint(2, (12,), generator=generator)
            noise = torch.randn(12, 3, 8, 8, generator=generator)
            yield (noise + labels[:, None, None, None]).contiguous(memory_format=torch.channels_last), labels


def config(optimizer: Literal["sgd", "adamw"], epochs: int = 5) -> TrainingConfig:
    rate = 0.05 if optimizer == "sgd" else 1e-2
    return TrainingConfig(optimizer=optimizer, learning_rate=rate, weight_decay=0.01, epochs=epochs)


def stop_after(epoch: int) -> Progress:
    def progress(done: float, total: int, metrics: Mapping[str, float]) -> None:
        if done == epoch:
            raise Cancelled("stop")

    return progress


def train(
    runtime: Runtime, training: TrainingConfig, network: nn.Module | None = None, **options: Any
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    network = network or build_network("convnet2-w8", 2, 3, 8, seed=0)
    history = fit(network, Toy(), cross_entropy, training, runtime, **options)
    assert not network.training
    return network.state_dict(), history


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_step_can_be_stopped_and_epochs_alone_have_metrics(runtime: Runtime) -> None:
    """An epoch of a large set takes hours."""
    seen: list[tuple[float, int, bool]] = []
    train(runtime, config("sgd", epochs=2), progress=lambda done, total, row: seen.append((done, total, bool(row))))
    assert seen == [(pytest.approx(step / 3), 2, step % 3 == 0) for step in range(1, 7)]
    with pytest.raises(Cancelled):
        train(runtime, config("sgd", epochs=2), progress=stop_after(1 / 3))


@pytest.mark.usefixtures("prompt_checkpoints")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("every", "killed_after"), [(1, 1), (1, 4), (2, 3)])
def test_a_killed_run_goes_on_to_the_same_bytes(
    optimizer: Literal["sgd", "adamw"], every: int, killed_after: int, runtime: Runtime, tmp_path: Path
) -> None:
    undisturbed, history = train(runtime, config(optimizer))
    checkpointing = Checkpointing(tmp_path / "new" / "folder", every)
    with pytest.raises(Cancelled):
        train(runtime, config(optimizer), checkpointing=checkpointing, progress=stop_after(killed_after))
    assert checkpointing.file.exists()
    seen: list[float] = []
    resumed, rows = train(
        runtime, config(optimizer), checkpointing=checkpointing, progress=lambda done, *_: seen.append(done)
    )
    begun = killed_after - killed_after % every
    assert seen[:2] == [begun, pytest.approx(begun + 1 / 3)]  # it did go on, not begin again
    assert same(resumed, undisturbed)
    assert rows == history


@pytest.mark.usefixtures("prompt_checkpoints")
def test_only_a_training_that_continues_says_so_and_once(runtime: Runtime, tmp_path: Path) -> None:
    told: list[tuple[float, int, dict[str, float]]] = []

    def until(epoch: int) -> Progress:
        def progress(done: float, total: int, metrics: Mapping[str, float]) -> None:
            if CONTINUED in metrics:
                told.append((done, total, dict(metrics)))
            elif done == epoch:
                raise Cancelled("stop")

        return progress

    for epoch, so_far in ((2, []), (4, [(2, 5, {CONTINUED: 2})])):
        with pytest.raises(Cancelled):
            train(runtime, config("sgd"), checkpointing=Checkpointing(tmp_path, 1), progress=until(epoch))
        assert told == so_far
    train(runtime, config("sgd"), checkpointing=Checkpointing(tmp_path, 1), progress=until(6))
    assert told == [(2, 5, {CONTINUED: 2}), (4, 5, {CONTINUED: 4})]


def dropping() -> nn.Module:
    with seeded_construction(0):
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 2))
    seed_stochastic_layers(network, 0, "test")
    return network


@pytest.mark.usefixtures("prompt_checkpoints")
def test_a_killed_run_of_a_network_that_draws_goes_on_to_the_same_bytes(runtime: Runtime, tmp_path: Path) -> None:
    undisturbed, history = train(runtime, config("sgd"), dropping())
    checkpointing = Checkpointing(tmp_path, 1)
    with pytest.raises(Cancelled):
        train(runtime, config("sgd"), dropping(), checkpointing=checkpointing, progress=stop_after(2))
    resumed, rows = train(runtime, config("sgd"), dropping(), checkpointing=checkpointing)
    assert same(resumed, undisturbed) and rows == history


def test_every_epoch_drops_other_parts(runtime: Runtime) -> None:
    """With the same images in every epoch and weights that hardly move, only what is dropped differs."""

    class Same(Toy):
        def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
            return super().epoch(0)

    still = TrainingConfig(optimizer="sgd", learning_rate=1e-12, weight_decay=0, epochs=3)
    losses = [row["loss"] for row in fit(dropping(), Same(), cross_entropy, still, runtime)]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3


def bottleneck() -> nn.Module:
    """Strided, grouped and 1 × 1 convolutions, whose momenta lie in memory in different ways."""
    with seeded_construction(0):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 16, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, groups=16),
            nn.BatchNorm2d(16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 2),
        )


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_layout_of_weights_goes_on_to_the_same_bytes(
    optimizer: Literal["sgd", "adamw"], runtime: Runtime, tmp_path: Path
) -> None:
    undisturbed, history = train(runtime, config(optimizer), bottleneck())
    checkpointing = Checkpointing(tmp_path, 1)
    with pytest.raises(Cancelled):
        train(runtime, config(optimizer), bottleneck(), checkpointing=checkpointing, progress=stop_after(2))
    resumed, rows = train(runtime, config(optimizer), bottleneck(), checkpointing=checkpointing)
    assert same(resumed, undisturbed) and rows == history


@pytest.mark.usefixtures("prompt_checkpoints")
def test_a_training_that_diverges_is_refused_and_leaves_no_checkpoint_of_it(runtime: Runtime, tmp_path: Path) -> None:
    """Its network would answer one class for all images, and its sets would be black, without a word."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.Linear(2, 2, bias=False))
    wild = TrainingConfig(optimizer="sgd", learning_rate=10, epochs=200)
    with pytest.raises(ConfigError, match=r"diverged in epoch \d+ of 200: the loss is .*Lower learning_rate.* 10\."):
        fit(
            network,
            Toy(),
            lambda x, y: mse_loss(x[:, 0], y.float()),
            wild,
            runtime,
            checkpointing=Checkpointing(tmp_path, 1),
        )
    left = read_checkpoint(tmp_path / "checkpoint.safetensors")
    assert left is not None and bool(left["history"].isfinite().all())


def test_killed_twice(runtime: Runtime, tmp_path: Path) -> None:
    undisturbed, history = train(runtime, config("sgd"))
    checkpointing = Checkpointing(tmp_path, 1)
    for epoch in (1, 3):
        with pytest.raises(Cancelled):
            train(runtime, config("sgd"), checkpointing=checkpointing, progress=stop_after(epoch))
    resumed, rows = train(runtime, config("sgd"), checkpointing=checkpointing)
    assert same(resumed, undisturbed) and rows == history


def test_nothing_half_written_is_left_beside_the_checkpoint(runtime: Runtime, tmp_path: Path) -> None:
    train(runtime, config("adamw"), checkpointing=Checkpointing(tmp_path, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]


def test_the_same_seed_gives_the_same_bytes_and_checkpoints_change_nothing(runtime: Runtime, tmp_path: Path) -> None:
    first, history = train(runtime, config("adamw"))
    again, rows = train(runtime, config("adamw"), checkpointing=Checkpointing(tmp_path, 1))
    assert same(first, again) and rows == history


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_loss_falls(optimizer: Literal["sgd", "adamw"], runtime: Runtime) -> None:
    _, history = train(runtime, config(optimizer, 8))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert [row["epoch"] for row in history] == list(range(1, 9))


AVERAGED = {"ema_decay": 0.9, "cosine_stretch": 2.0}


@pytest.mark.parametrize(("every", "killed_after"), [(1, 1), (2, 3)])
def test_a_killed_run_goes_on_to_the_same_average(
    every: int, killed_after: int, runtime: Runtime, tmp_path: Path
) -> None:
    training = config("adamw").model_copy(update=AVERAGED)
    undisturbed, history = train(runtime, training)
    checkpointing = Checkpointing(tmp_path, every)
    with pytest.raises(Cancelled):
        train(runtime, training, checkpointing=checkpointing, progress=stop_after(killed_after))
    assert checkpointing.file.exists()
    resumed, rows = train(runtime, training, checkpointing=checkpointing)
    assert same(resumed, undisturbed) and rows == history


class Watched(Toy):
    """Keeps what a network held before every step."""

    def __init__(self, network: nn.Module) -> None:
        self.network, self.seen = network, list[dict[str, Tensor]]()

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in super().epoch(number):
            self.seen.append({name: value.clone() for name, value in self.network.state_dict().items()})
            yield batch


def test_the_average_is_the_explicit_sum_of_all_steps_weights_and_batchnorm_alike(runtime: Runtime) -> None:
    """w̄_n = d^(n−1) w_1 + (1 − d) Σ_{t ≥ 2} d^(n−t) w_t; and averaging does not disturb what is averaged."""
    d, plain = 0.8, config("adamw", 3)
    network = build_network("convnet2-w8", 2, 3, 8, seed=0)
    watched = Watched(network)
    history = fit(network, watched, cross_entropy, plain, runtime)
    after = [*watched.seen[1:], network.state_dict()]  # of every step
    n = len(after)
    weights = [d ** (n - 1)] + [(1 - d) * d ** (n - t) for t in range(2, n + 1)]
    assert sum(weights) == pytest.approx(1)
    averaged, rows = train(runtime, plain.model_copy(update={"ema_decay": d}))
    assert rows == history
    assert any("running_var" in name for name in averaged)
    for name, value in averaged.items():
        if value.is_floating_point():
            explicit = sum(w * state[name].double() for w, state in zip(weights, after, strict=True))
            torch.testing.assert_close(value.double(), explicit, rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, after[-1][name])


def test_tables_of_indices_are_not_averaged() -> None:
    """Windowed attention looks its biases up in one: a rounded average of equal indices would be others."""
    network = nn.Linear(2, 2)
    table = torch.arange(1000).reshape(10, 100)
    network.register_buffer("table", table.clone())
    average = Average(network, decay=0.9)
    for _ in range(50):
        average.update()
    assert torch.equal(average.module.get_buffer("table"), table)


@pytest.mark.parametrize(("stretch", "floor"), [(1.0, 0.0), (4 / 3, 0.5 - math.sqrt(2) / 4), (2.0, 0.5), (1e6, 1.0)])
def test_a_stretched_cosine_ends_above_zero(stretch: float, floor: float) -> None:
    assert cosine(1.0, 0, 60, stretch) == 1
    assert cosine(1.0, 60, 60, stretch) == pytest.approx(floor, abs=1e-9)
    assert cosine(0.3, 60, 60, stretch) == pytest.approx(0.3 * math.cos(math.pi / 2 / stretch) ** 2, abs=1e-9)
    rates = [cosine(1.0, step, 60, stretch) for step in range(61)]
    assert rates == sorted(rates, reverse=True)


def test_training_follows_the_stretched_cosine(runtime: Runtime) -> None:
    training = TrainingConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0, epochs=2, cosine_stretch=2.0)
    history = fit(Weight(), OneNumber(3), mse_loss, training, runtime)
    assert [row["learning_rate"] for row in history] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * step / 12)) for step in (2, 5)]
    )


def test_cosine_falls_from_its_peak_to_zero() -> None:
    assert cosine(0.3, 0, 100) == 0.3
    assert cosine(0.3, 50, 100) == pytest.approx(0.15)
    assert cosine(0.3, 100, 100) == 0
    rates = [cosine(0.3, step, 100) for step in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert cosine(0.3, 25, 100) == pytest.approx(0.3 * (0.5 + math.sqrt(2) / 4))


class OneNumber:
    """Inputs 1, targets 0: the gradient of mean square is twice the weight."""

    def __init__(self, steps: int) -> None:
        self.steps_per_epoch = steps

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.steps_per_epoch):
            yield torch.ones(2, 1, 1, 1), torch.zeros(2, 1)


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(1.0))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.value * inputs.flatten(1)


def test_sgd_follows_its_formula_step_by_step(runtime: Runtime) -> None:
    """Momentum 0.9, weight decay in the gradient, cosine over all steps of all epochs, not over epochs."""
    network, training = Weight(), TrainingConfig(optimizer="sgd", learning_rate=0.1, weight_decay=0.01, epochs=2)
    history = fit(network, OneNumber(3), mse_loss, training, runtime)
    weight, velocity, losses = 1.0, 0.0, []
    for step in range(6):
        losses.append(weight**2)
        velocity = 0.9 * velocity + 2 * weight + 0.01 * weight
        weight -= 0.05 * (1 + math.cos(math.pi * step / 6)) * velocity
    assert float(network.value.detach()) == pytest.approx(weight, rel=1e-5)
    assert [row["loss"] for row in history] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3], rel=1e-5)
    assert history[-1]["learning_rate"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 5 / 6)))


def test_adamw_decays_weights_apart_from_the_gradient(runtime: Runtime) -> None:
    network, training = Weight(), TrainingConfig(optimizer="adamw", learning_rate=0.1, weight_decay=0.5, epochs=1)
    fit(network, OneNumber(1), mse_loss, training, runtime)
    assert float(network.value.detach()) == pytest.approx(1 - 0.1 * 0.5 - 0.1, rel=1e-5)  # the first step is the sign


def test_batchnorm_is_trained_and_then_fixed(runtime: Runtime) -> None:
    network = build_network("convnet2-w8", 2, 3, 8, seed=0).eval()
    fit(network, Toy(), cross_entropy, config("adamw", 1), runtime)
    assert int(network.state_dict()["features.1.num_batches_tracked"]) == 3
    assert not network.training
