"""Trajectory matching: its gradients, its zero, its determinism, and going on after a kill."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.errors import Cancelled, ConfigError
from cudd_core.models.registry import build_network
from cudd_core.models.stateless import leaves, sgd_step, stateless
from cudd_core.objectives.configuration import MttConfig, SynthesisConfig
from cudd_core.objectives.descend import descend
from cudd_core.objectives.mtt import MttObjective
from cudd_core.progress import CONTINUED
from cudd_core.records import NetworkSpec, Trajectory
from cudd_core.seeding import host_rng

ARCHS = ("convnet1-w3-in", "convnet1-w3")
SIZE = 4
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
PLAIN = {"crop": "none", "flip": False}


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return Runtime(ComputeConfig())


def pixels(seed: int, count: int = 6) -> Tensor:
    return torch.randint(
        0, 256, (count, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def images(seed: int, count: int = 6) -> Tensor:
    return Normalizer((0.5,), (0.25,))(pixels(seed, count))


def configured(iterations: int = 6, log_every: int = 2, **mtt: Any) -> SynthesisConfig:
    tiny: dict[str, Any] = {"expert_epochs": 5, "steps": 2, "span": 2, "start_epochs": 2, "step_size": 0.1}
    return SynthesisConfig(
        objective="mtt", iterations=iterations, log_every=log_every, mtt=MttConfig.model_validate(tiny | mtt)
    )


def expert(arch: str, batches: list[tuple[Tensor, Tensor]], step_size: float = 0.1, seed: int = 0) -> Trajectory:
    """A way of one step of SGD an epoch."""
    network = stateless(build_network(arch, 3, 1, SIZE, seed), arch)
    way = [dict(network.named_parameters())]
    for batch in batches:
        way.append(sgd_step(network, leaves(way[-1]), *batch, step_size)[0])
    spec = NetworkSpec(arch, 3, 1, SIZE, (0.5,), (0.25,), ("a", "b", "c"))
    return Trajectory(spec, {name: torch.stack([each[name].detach() for each in way]) for name in way[0]})


def objective(
    arch: str,
    config: SynthesisConfig,
    experts: list[Trajectory],
    runtime: Runtime,
    earlier: tuple[Tensor, Tensor] = (torch.empty(0, 1, SIZE, SIZE), torch.empty(0, dtype=torch.int64)),
) -> MttObjective:
    return MttObjective(stateless(build_network(arch, 3, 1, SIZE, 0), arch), experts, earlier, config, runtime)


@pytest.fixture(params=ARCHS)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def way(arch: str) -> Trajectory:
    return expert(arch, [(images(seed), LABELS) for seed in range(1, 6)])


# The distance


@pytest.mark.parametrize(("steps", "augmented"), [(1, True), (2, False), (3, True)])
def test_gradients_through_the_steps_are_those_of_finite_differences(
    steps: int, augmented: bool, arch: str, way: Trajectory, runtime: Runtime
) -> None:
    double = Trajectory(way.spec, {name: rows.double() for name, rows in way.snapshots.items()})
    config = configured(steps=steps, batch_size=2, **({} if augmented else PLAIN))
    followed = objective(arch, config, [double], runtime)

    def distance(synthetic: Tensor, step_size: Tensor) -> Tensor:
        return followed.distance(synthetic, LABELS[:3], step_size, double, 1, np.random.default_rng(0))

    at = (images(0, 3).double().requires_grad_(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True))
    assert torch.autograd.gradcheck(distance, at)
    gradients = torch.autograd.grad(distance(*at), at)
    assert all(float(gradient.abs().max()) > 1e-5 for gradient in gradients)


@pytest.mark.parametrize("steps", [1, 3])
def test_nothing_is_left_where_the_student_repeats_the_expert_s_steps(steps: int, arch: str, runtime: Runtime) -> None:
    on = images(0)
    repeated = expert(arch, [(on, LABELS)] * 5)
    followed = objective(arch, configured(steps=steps, span=steps, **PLAIN), [repeated], runtime)

    def left(seen: Tensor, step_size: float) -> float:
        at = (torch.tensor(step_size), repeated, 1, np.random.default_rng(0))
        return float(followed.distance(seen, LABELS, *at).detach())

    assert left(on, 0.1) < 1e-9
    assert left(on, 0.05) > 0.1 and left(images(1), 0.1) > 0.1
    assert left(on, 0.0) == 1  # it never left


@pytest.mark.parametrize("together", [0, 4])
def test_students_see_every_image_before_one_again(together: int, arch: str, way: Trajectory, runtime: Runtime) -> None:
    """With four of six a step: all are seen in two steps, and two never are in one."""
    for steps, seen in ((1, together or 6), (2, 6)):
        followed = objective(arch, configured(steps=steps, batch_size=together, **PLAIN), [way], runtime)
        synthetic = images(0).requires_grad_()
        distance = followed.distance(synthetic, LABELS, torch.tensor(0.1), way, 0, np.random.default_rng(0))
        (gradient,) = torch.autograd.grad(distance, synthetic)
        assert int((gradient.flatten(1).abs().amax(1) > 0).sum()) == seen


# The descent


def follow(
    followed: MttObjective, runtime: Runtime, seed: int = 0, **given: Any
) -> tuple[Tensor, list[dict[str, float]]]:
    return descend(
        followed, pixels(0), LABELS, torch.arange(6) // 3, Normalizer((0.5,), (0.25,)), seed, runtime, **given
    )


def test_the_distance_falls_and_the_step_size_is_learned(arch: str, way: Trajectory, runtime: Runtime) -> None:
    config = configured(
        60, 1, start_epochs=1, pixel_learning_rate=1.0, step_size=0.02, step_size_learning_rate=1e-3, **PLAIN
    )
    moved, history = follow(objective(arch, config, [way], runtime), runtime)
    distances = [row["trajectory"] for row in history]
    assert distances[-1] < 0.8 * distances[0]
    assert history[0]["step_size"] == pytest.approx(0.02)
    assert history[-1]["step_size"] > 0.02  # the expert's was 0.1
    assert not torch.equal(moved, pixels(0))


def test_the_first_step_is_sgd_on_pixels_and_step_size(arch: str, way: Trajectory, runtime: Runtime) -> None:
    config = configured(
        2, 1, start_epochs=1, pixel_learning_rate=0.5, step_size_learning_rate=0.25, step_size=0.1, **PLAIN
    )
    followed = objective(arch, config, [way], runtime)
    start, step_size = images(0).requires_grad_(), torch.tensor(0.1, requires_grad=True)
    stream = (0, "synthesize", 0, 0)
    rng = host_rng(*stream, "trajectory", 0)
    rng.integers(1), rng.integers(1)  # which expert, from which epoch
    distance = followed.distance(start, LABELS, step_size, way, 0, rng)
    by_pixel, by_step = torch.autograd.grad(distance, (start, step_size))
    once, _ = follow(objective(arch, configured(1, **config.mtt.model_dump()), [way], runtime), runtime)
    _, history = follow(followed, runtime)
    assert history[1]["step_size"] == pytest.approx(0.1 - 0.25 * float(by_step), rel=1e-5)
    expected = Normalizer((0.5,), (0.25,)).to_uint8((start - 0.5 * by_pixel).detach())
    assert int((once.int() - expected.int()).abs().max()) <= 1


def test_earlier_images_are_trained_on_and_stay(arch: str, way: Trajectory, runtime: Runtime) -> None:
    before = (images(7, 3), torch.arange(3))
    kept = before[0].clone()
    config = configured(pixel_learning_rate=5.0)
    first, _ = follow(objective(arch, config, [way], runtime), runtime)
    later, _ = follow(objective(arch, config, [way], runtime, before), runtime)
    assert torch.equal(before[0], kept) and later.shape == first.shape
    assert not torch.equal(first, later)


def test_every_image_keeps_its_own_class_beside_earlier_ones(arch: str, way: Trajectory, runtime: Runtime) -> None:
    """Two earlier images of the last class, which no order of the others' labels could stand for."""
    before = (images(7, 2), torch.tensor([2, 2]))
    followed = objective(arch, configured(1, 1, start_epochs=1, steps=1, **PLAIN), [way], runtime, before)
    _, (row,) = follow(followed, runtime)
    rng = host_rng(0, "synthesize", 0, 0, "trajectory", 0)
    rng.integers(1), rng.integers(1)
    seen, known = torch.cat([before[0], images(0)]), torch.cat([before[1], LABELS])
    expected = followed.distance(seen, known, torch.tensor(0.1), way, 0, rng)
    assert row["trajectory"] == pytest.approx(float(expected.detach()), rel=1e-5)


def test_students_start_from_every_expert_and_every_epoch_that_they_may(
    arch: str, way: Trajectory, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [way, expert(arch, [(images(9), LABELS)] * 5)]
    begun, original = set[tuple[int, int]](), MttObjective.distance

    def watched(self: MttObjective, *given: Any) -> Tensor:
        begun.add((next(n for n, each in enumerate(experts) if each is given[3]), given[4]))
        return original(self, *given)

    monkeypatch.setattr(MttObjective, "distance", watched)
    follow(objective(arch, configured(60, start_epochs=3, steps=1), experts, runtime), runtime)
    assert begun == {(which, epoch) for which in (0, 1) for epoch in (0, 1, 2)}


def test_the_second_step_keeps_half_of_the_first(arch: str, way: Trajectory, runtime: Runtime) -> None:
    """SGD with momentum 0.5, on the step size too, at constant rates."""
    config = configured(3, 1, start_epochs=1, steps=1, pixel_learning_rate=1e-9, step_size_learning_rate=0.05, **PLAIN)
    _, history = follow(objective(arch, config, [way], runtime), runtime)
    first, second, third = (row["step_size"] for row in history)
    followed, at = objective(arch, config, [way], runtime), torch.tensor(second, requires_grad=True)
    distance = followed.distance(images(0), LABELS, at, way, 0, np.random.default_rng(0))  # one step on all images
    (gradient,) = torch.autograd.grad(distance, at)
    assert third - second == pytest.approx(0.5 * (second - first) - 0.05 * float(gradient), rel=1e-3)


def test_the_same_seed_gives_the_same_bytes(arch: str, way: Trajectory, runtime: Runtime) -> None:
    followed = objective(
        arch, configured(pixel_learning_rate=5.0), [way, expert(arch, [(images(9), LABELS)] * 5)], runtime
    )
    before = torch.get_rng_state()
    first, again, other = (follow(followed, runtime, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first[0], again[0]) and first[1] == again[1]
    assert not torch.equal(first[0], other[0])


@pytest.mark.usefixtures("prompt_checkpoints")
@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_killed_descent_goes_on_with_the_same_bytes(
    stop_at: int, arch: str, way: Trajectory, runtime: Runtime, tmp_path: Path
) -> None:
    followed = objective(arch, configured(pixel_learning_rate=5.0), [way], runtime)
    whole = follow(followed, runtime)

    def stop(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done >= stop_at:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        follow(followed, runtime, checkpoints=tmp_path, progress=stop)
    told: list[tuple[int, Mapping[str, float]]] = []
    resumed = follow(followed, runtime, checkpoints=tmp_path, progress=lambda done, _, row: told.append((done, row)))
    assert told == [(stop_at, {CONTINUED: stop_at}), *((done, {}) for done in range(stop_at + 1, 7))]
    assert torch.equal(resumed[0], whole[0]) and resumed[1] == whole[1]


def test_a_descent_that_diverges_says_what_to_lower(arch: str, way: Trajectory, runtime: Runtime) -> None:
    config = configured(step_size=1e30)
    with pytest.raises(ConfigError, match=r"diverged at iteration 0.*synthesis\.mtt\.step_size"):
        follow(objective(arch, config, [way], runtime), runtime)


# The configuration


def test_defaults_are_those_of_the_method_s_paper() -> None:
    config = MttConfig()
    assert (config.arch, config.experts, config.expert_epochs) == ("convnet3-in", 100, 50)
    assert (config.expert_batch_size, config.expert_learning_rate) == (256, 0.01)
    assert (config.steps, config.span, config.start_epochs) == (30, 2, 15)
    assert (config.pixel_learning_rate, config.step_size, config.step_size_learning_rate) == (1000, 0.01, 1e-5)


def test_what_another_objective_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="objective = cudd does not read mtt"):
        SynthesisConfig(mtt=MttConfig(steps=3))
    with pytest.raises(ValueError, match="objective = mtt does not read jitter, weight_bn"):
        SynthesisConfig(objective="mtt", weight_bn=0.5, jitter=1)


def test_students_are_compared_with_epochs_that_exist() -> None:
    with pytest.raises(ValueError, match="look at epoch 11 of experts that train for expert_epochs = 10"):
        MttConfig(start_epochs=10, span=2, expert_epochs=10)
    assert MttConfig(start_epochs=9, span=2, expert_epochs=10).last_epoch == 10
