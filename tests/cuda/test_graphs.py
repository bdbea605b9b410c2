"""Steps as CUDA graphs: the same bytes as step by step, after kills too, on every kind of network."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from cudd_core.compute.graphs import Recorded
from cudd_core.compute.lanes import aside, lane
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.augment import resized_crop_warp
from cudd_core.data.label_shards import unpacked
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LossConfig, train_on_set
from cudd_core.labelling import Teaching
from cudd_core.losses.bn_alignment import bn_alignment
from cudd_core.models.architectures import ARCHITECTURES
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.committee import Committee
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.descend import Rows, descend
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, NetworkSpec, SoftLabels, SyntheticSet
from cudd_core.seeding import host_rng, torch_rng
from cudd_core.stages.relabel import relabel
from cudd_core.training import Checkpointing, TrainingConfig

CLASSES, SIZE, IMAGES, BATCH = 5, 32, 20, 8
NAMES = tuple(f"class {k}" for k in range(CLASSES))
AMP: list[Literal["off", "bf16"]] = ["off", "bf16"]


class KilledError(Exception):
    """What ends a run in these tests."""


def runtime(amp: Literal["off", "bf16"], graphs: bool) -> Runtime:
    return Runtime(ComputeConfig(device="cuda", amp=amp, graphs=graphs))


def spec(arch: str) -> NetworkSpec:
    return NetworkSpec(arch, CLASSES, 3, SIZE, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), NAMES)


def pixels(n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, SIZE, SIZE), generator=torch_rng(0, "pixels"), dtype=torch.uint8)


def synthetic() -> SyntheticSet:
    """Batches of 8, 8 and 4."""
    n = torch.arange(IMAGES)
    return SyntheticSet(pixels(IMAGES), n % CLASSES, n // CLASSES, n, torch.ones_like(n), NAMES)


def teacher(arch: str) -> NetworkRecord:
    return NetworkRecord(spec(arch), build_network(arch, CLASSES, 3, SIZE, 0).state_dict())


def train(
    arch: str,
    config: TrainingConfig,
    loss: LossConfig,
    where: Runtime,
    checkpointing: Checkpointing | None = None,
    progress: Progress = silent,
) -> NetworkRecord:
    generator = torch_rng(0, "labels")
    labels = [SoftLabels(torch.randn(config.epochs, IMAGES, CLASSES, generator=generator).half(), 0)]
    network = build_network(arch, CLASSES, 3, SIZE, 1)
    return train_on_set(
        *(network, spec(arch), synthetic(), labels, config, loss, ReplayConfig(), 0, where),
        checkpointing=checkpointing,
        progress=progress,
    )


def same(a: NetworkRecord, b: NetworkRecord) -> bool:
    return a.history == b.history and all(torch.equal(value, b.state[name]) for name, value in a.state.items())


def stop_after(epochs: int) -> Progress:
    def progress(done: float, total: int, metrics: object) -> None:
        if done == epochs:
            raise KilledError

    return progress


TRAININGS: list[tuple[dict[str, Any], LossConfig]] = [
    ({"optimizer": "adamw"}, LossConfig()),
    ({"optimizer": "sgd", "learning_rate": 0.002}, LossConfig(loss="mse")),
    ({"ema_decay": 0.9, "cosine_stretch": 2.0}, LossConfig(loss="mse", hard_label_weight=0.025)),
]


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize("arch", ["convnet3-w16", "resnet18"])
@pytest.mark.parametrize(("fields", "loss"), TRAININGS)
def test_training_has_the_same_bytes(
    amp: Literal["off", "bf16"], arch: str, fields: dict[str, Any], loss: LossConfig
) -> None:
    config = TrainingConfig(epochs=12, batch_size=BATCH, **fields)
    plain, recorded, again = (train(arch, config, loss, runtime(amp, graphs)) for graphs in (False, True, True))
    assert same(recorded, again)
    assert same(plain, recorded)


@pytest.mark.parametrize(("fields", "loss"), TRAININGS)
def test_a_killed_training_goes_on_to_the_same_bytes(fields: dict[str, Any], loss: LossConfig, tmp_path: Path) -> None:
    config = TrainingConfig(epochs=30, batch_size=BATCH, **fields)
    whole = train("convnet3-w16", config, loss, runtime("bf16", True))
    checkpointing = Checkpointing(tmp_path, every=5)
    with pytest.raises(KilledError):
        train("convnet3-w16", config, loss, runtime("bf16", True), checkpointing, stop_after(23))
    assert same(whole, train("convnet3-w16", config, loss, runtime("bf16", True), checkpointing))


def synthesize(
    arch: str, config: SynthesisConfig, where: Runtime, checkpoints: Path | None = None, progress: Progress = silent
) -> tuple[Tensor, Rows]:
    originals, n = pixels(IMAGES), torch.arange(IMAGES)
    networks = [freeze_batchnorm(build_network(arch, CLASSES, 3, SIZE, k).eval().requires_grad_(False)) for k in (0, 1)]
    committee, student = Committee([where.network(networks[0])], [arch]), where.network(networks[1])
    with ExitStack() as stack:
        objective = CuddObjective(committee, student, config, where, stack)
        return descend(
            *(objective, originals, n % CLASSES, n // CLASSES),
            Normalizer((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), where.device),
            *(0, where),
            checkpoints=checkpoints,
            progress=progress,
        )


SYNTHESES: list[dict[str, Any]] = [
    {},
    {"crops": "image", "weight_decay": 1e-4},
    {"regularization": "feature", "init": "noise"},
    {"weight_adv": 0, "batch_size": 5, "crop_anneal": "cosine"},
]


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize("arch", ["convnet3-w16", "resnet18"])
@pytest.mark.parametrize("fields", SYNTHESES)
def test_synthesis_has_the_same_bytes(amp: Literal["off", "bf16"], arch: str, fields: dict[str, Any]) -> None:
    config = SynthesisConfig(iterations=40, log_every=10, **{"batch_size": 10, **fields})
    plain, recorded, again = (synthesize(arch, config, runtime(amp, graphs)) for graphs in (False, True, True))
    assert torch.equal(recorded[0], again[0]) and recorded[1] == again[1]
    assert torch.equal(plain[0], recorded[0]) and plain[1] == recorded[1]
    assert not torch.equal(plain[0], pixels(IMAGES))


def test_a_killed_synthesis_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    config, done = SynthesisConfig(iterations=40, log_every=10, batch_size=10), []

    def kill(iterations: float, total: int, metrics: object) -> None:
        done.append(iterations)
        if iterations == 65:
            raise KilledError

    whole = synthesize("convnet3-w16", config, runtime("bf16", True))
    with pytest.raises(KilledError):
        synthesize("convnet3-w16", config, runtime("bf16", True), tmp_path, kill)
    resumed = synthesize("convnet3-w16", config, runtime("bf16", True), tmp_path)
    assert torch.equal(whole[0], resumed[0]) and whole[1] == resumed[1]


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_labels_are_the_same_and_those_that_training_asks_for(
    amp: Literal["off", "bf16"], batch_statistics: bool
) -> None:
    """Of six groups of 16 epochs, of which the fourth is recorded, or of every batch by itself."""
    plain, recorded = (
        relabel(
            Teaching(teacher("convnet3-w16"), batch_statistics),
            synthetic(),
            range(96),
            BATCH,
            ReplayConfig(),
            0,
            runtime(amp, graphs),
        )
        for graphs in (False, True)
    )
    bounds = [(0, IMAGES)]
    stored, same_stored = unpacked(plain, bounds).logits, unpacked(recorded, bounds).logits
    assert torch.equal(stored, same_stored)
    config = TrainingConfig(epochs=96, batch_size=BATCH)
    networks = [
        train_on_set(
            *(build_network("convnet3-w16", CLASSES, 3, SIZE, 1), spec("convnet3-w16"), synthetic(), labels, config),
            *(LossConfig(), ReplayConfig(), 0, runtime(amp, True)),
        )
        for labels in ([recorded], Teaching(teacher("convnet3-w16"), batch_statistics))
    ]
    assert same(*networks)


def test_a_set_that_stays_on_the_host_gets_the_same_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    def labels() -> Tensor:
        made = relabel(
            Teaching(teacher("convnet3-w16")), synthetic(), range(8), BATCH, ReplayConfig(), 0, runtime("off", True)
        )
        return unpacked(made, [(0, IMAGES)]).logits

    on_the_gpu = labels()
    monkeypatch.setattr("cudd_core.data.replay.RESIDENT_BYTES", 0)
    assert torch.equal(labels(), on_the_gpu)


@pytest.mark.parametrize("arch", [*sorted(ARCHITECTURES), "torchvision/vgg11_bn"])
def test_every_architecture_trains_and_repeats(arch: str, caplog: pytest.LogCaptureFixture) -> None:
    """With graphs where it draws nothing; a network that could not be recorded would be warned of."""
    config = TrainingConfig(epochs=4, batch_size=BATCH)
    with caplog.at_level(logging.WARNING, "cudd.graphs"):
        first, second = (train(arch, config, LossConfig(), runtime("bf16", True)) for _ in range(2))
    assert same(first, second)
    assert not caplog.records


def test_what_cannot_be_recorded_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    step = Recorded(lambda x: (x * float(x.sum()),), torch.device("cuda", 0), True)
    with caplog.at_level(logging.WARNING, "cudd.graphs"):
        found = [float(step(torch.full((2,), float(k), device="cuda"))[0][0]) for k in range(1, 7)]
    assert found == [2.0 * k * k for k in range(1, 7)]
    assert len(caplog.records) == 1


def test_a_recording_that_fails_with_an_open_branch_leaves_others_possible(caplog: pytest.LogCaptureFixture) -> None:
    def branched(x: Tensor) -> tuple[Tensor]:
        squared = aside(lambda: x * x, x)
        return (x + squared(),)

    def failing(x: Tensor) -> tuple[Tensor]:
        squared = aside(lambda: x * x, x)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("out of luck")
        return (x + squared(),)

    for body in (failing, branched):
        step = Recorded(body, torch.device("cuda", 0), True)
        with caplog.at_level(logging.WARNING, "cudd.graphs"):
            found = [float(step(torch.full((2,), float(k), device="cuda"))[0][0]) for k in range(1, 7)]
        assert found == [float(k + k * k) for k in range(1, 7)]
        assert len(caplog.records) == 1 and "out of luck" in caplog.text


@pytest.mark.parametrize("amp", AMP)
@pytest.mark.parametrize("arch", ["convnet3-w16", "resnet18"])
def test_bn_alignment_in_few_kernels_has_the_same_gradient(amp: Literal["off", "bf16"], arch: str) -> None:
    """Against float64 on the host: of the loss to rounding, of the gradient as exact as the plain way."""
    from cudd_core.compute.gpu.losses import BatchNormAlignment

    where = runtime(amp, False)
    images = Normalizer((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))(pixels(BATCH))
    exact_network = build_network(arch, CLASSES, 3, SIZE, 0).eval().requires_grad_(False).double()
    with BatchNormInputs(exact_network, arch) as watched:
        exact_images = images.double().requires_grad_()
        exact_network(exact_images)
        exact = bn_alignment(watched.collect(), watched.running, 10.0)
        (expected,) = torch.autograd.grad(exact, exact_images)
    network = where.network(build_network(arch, CLASSES, 3, SIZE, 0).eval().requires_grad_(False))
    with BatchNormInputs(network, arch) as watched:
        given = where.images(images).requires_grad_()
        with where.autocast():
            network(given)
        loss = BatchNormAlignment(watched.running, 10.0)(watched.collect())
        (found,) = torch.autograd.grad(loss, given)
    assert float(loss.detach()) == pytest.approx(float(exact.detach()), rel=1e-3 if amp == "off" else 0.05)
    # 20 layers of ReLU in float32, whose signs flip where a value is nearly 0.
    error = (found.double().cpu() - expected).norm() / expected.norm()
    assert float(error) < (0.1 if amp == "off" else 0.5)


@pytest.mark.parametrize("arch", ["convnet3", "resnet18"])
@pytest.mark.parametrize("lanes", [False, True])
def test_threads_that_share_the_gpu_do_not_disturb_each_other(arch: str, lanes: bool) -> None:
    """Wide enough that products of matrices need a workspace; on one stream, and at the same time in lanes."""
    config = TrainingConfig(epochs=60, batch_size=BATCH)
    synthetic_config = SynthesisConfig(iterations=60, batch_size=10)

    def work(number: int) -> tuple[NetworkRecord, Tensor]:
        with lane(number % 6, 0) if lanes else nullcontext():
            network = train(arch, config, LossConfig(), runtime("bf16", True))
            return network, synthesize(arch, synthetic_config, runtime("bf16", True))[0]

    alone = train(arch, config, LossConfig(), runtime("bf16", True))
    images = synthesize(arch, synthetic_config, runtime("bf16", True))[0]
    with ThreadPoolExecutor(6) as pool:
        for network, made in pool.map(work, range(12)):
            assert same(alone, network)
            assert torch.equal(images, made)


@pytest.mark.parametrize("size", [28, 32, 224])
def test_views_are_made_of_the_same_bits_as_on_the_host(size: int) -> None:
    here, there = (
        resized_crop_warp(50, size, (0.08, 1.0), True, host_rng(0, "warp"), 4, device) for device in ("cpu", "cuda")
    )
    assert torch.equal(here.rows, there.rows.cpu()) and torch.equal(here.columns, there.columns.cpu())
