"""Every stage on a GPU: what the host finds up to rounding, the same bits twice, results on the host."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cudd_core.class_order import in_order
from cudd_core.codec import content_digest
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.batches import AugmentedBatches
from cudd_core.data.label_forms import LabelForm, Storage, decode
from cudd_core.data.label_shards import StoredLabels, batch_labels, unpacked
from cudd_core.data.memory import ArraySplit
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.replay import ClassReplay, Replay, ReplayConfig, batch_bounds
from cudd_core.distillation import LossConfig, train_on_set
from cudd_core.errors import ModelError
from cudd_core.labelling import Teaching
from cudd_core.measurement import measure, measure_together
from cudd_core.models.committee import restore_committee
from cudd_core.models.registry import build_network
from cudd_core.models.stochastic import seed_stochastic_layers
from cudd_core.objectives.configuration import MttConfig, SynthesisConfig
from cudd_core.objectives.patches import patchwork
from cudd_core.records import (
    LabelShard,
    NetworkRecord,
    NetworkSpec,
    Record,
    Selection,
    Shard,
    SyntheticSet,
    Trajectory,
    Verdicts,
)
from cudd_core.seeding import torch_rng
from cudd_core.stages.classify import classify
from cudd_core.stages.features import features
from cudd_core.stages.learn_classes import learn_classes
from cudd_core.stages.match_trajectories import match_trajectories
from cudd_core.stages.pool_statistics import pool_of, pool_statistics
from cudd_core.stages.relabel import relabel
from cudd_core.stages.squeeze import preflight, train_teacher
from cudd_core.stages.synthesize import synthesize
from cudd_core.stages.train_expert import train_expert
from cudd_core.stages.train_network import EvaluationConfig, train_network
from cudd_core.teacher import TeacherConfig
from cudd_core.training import TrainingConfig

CLASSES = ("amber", "blue", "cyan", "dove")
ARCH, SIZE, SLICES = "convnet2-w8", 8, 6
FLOATS, COUNTS, PIXELS = {torch.float32}, {torch.int64}, {torch.uint8}
TEACHER = TeacherConfig(
    arch=ARCH,
    training=TrainingConfig(optimizer="sgd", learning_rate=0.05, weight_decay=5e-4, epochs=6, batch_size=20),
    crop="none",
)
REPLAY = ReplayConfig(crop_scale=(0.3, 1.0))
# Each epoch is one step, so the loss of the first is that of the first step. From the fourth on, steps are a graph.
TRAINING = TrainingConfig(epochs=8, learning_rate=5e-3, batch_size=SLICES * len(CLASSES))

Kind = Literal["cpu", "cuda"]
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Device:
    """A runtime on the GPU, and how near to the host's its numbers are: shares of the largest, shares of answers."""

    runtime: Runtime
    near: float
    agreeing: float


@pytest.fixture(scope="module")
def device() -> Kind:
    return "cuda"


@pytest.fixture(scope="module")
def host() -> Runtime:
    """With torch's own convolutions."""
    return Runtime(ComputeConfig(convolution="direct"))


@contextmanager
def no_tf32() -> Iterator[None]:
    """Convolutions in float32 throughout: left alone, torch computes them in TF32."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    usual, convolutions.fp32_precision = convolutions.fp32_precision, "ieee"
    try:
        yield
    finally:
        convolutions.fp32_precision = usual


@pytest.fixture
def gpu(device: Kind) -> Iterator[Runtime]:
    """In float32 throughout."""
    with no_tf32():
        yield Runtime(ComputeConfig(device=device))


@pytest.fixture(params=["float32", "tf32", "bf16"])
def precise(device: Kind, request: pytest.FixtureRequest) -> Iterator[Device]:
    near, agreeing = {"float32": (5e-5, 0.99), "tf32": (3e-3, 0.98), "bf16": (0.03, 0.95)}[request.param]
    with no_tf32() if request.param == "float32" else nullcontext():
        runtime = Runtime(ComputeConfig(device=device, amp="bf16" if request.param == "bf16" else "off"))
        yield Device(runtime, near, agreeing)


def draw(per_class: int, seed: int, size: int = SIZE) -> ArraySplit:
    """Classes mixed up, each a colour and a bright quarter of the image, with noise."""
    colours = torch.tensor([[150, 110, 60], [70, 80, 160], [60, 150, 150], [120, 120, 130]], dtype=torch.float32)
    labels = torch.arange(len(CLASSES)).repeat(per_class)
    noise = torch.randn(len(labels), 3, size, size, generator=torch_rng(seed, "toy"))
    pixels, half = colours[labels][:, :, None, None] + 40 * noise, size // 2
    for label in range(len(CLASSES)):
        row, column = (half * part for part in divmod(label, 2))
        pixels[labels == label, :, row : row + half, column : column + half] += 40
    return ArraySplit(pixels.round().clamp(0, 255).to(torch.uint8), labels, CLASSES)


@pytest.fixture(scope="module")
def split() -> ArraySplit:
    """More images than are predicted together."""
    return draw(80, seed=0)


@pytest.fixture(scope="module")
def teacher(split: ArraySplit, host: Runtime) -> NetworkRecord:
    return train_teacher(split, TEACHER, 0, host)


@pytest.fixture(scope="module")
def student(split: ArraySplit, host: Runtime) -> NetworkRecord:
    """A network that has seen little: wrong on some images."""
    little = TEACHER.training.model_copy(update={"epochs": 1, "learning_rate": 0.002})
    return train_teacher(split, TEACHER.model_copy(update={"training": little}), 1, host)


def verdicts(network: NetworkRecord, split: ArraySplit, runtime: Runtime) -> Verdicts:
    return classify(network, split, range(len(CLASSES)), runtime)


@pytest.fixture(scope="module")
def selection(split: ArraySplit) -> Selection:
    """The first images of every class."""
    indices = torch.arange(SLICES * len(CLASSES)).view(SLICES, len(CLASSES))
    return Selection(torch.arange(len(CLASSES)), 0, indices, torch.zeros_like(indices))


@pytest.fixture(scope="module")
def synthetic(split: ArraySplit) -> SyntheticSet:
    n = torch.arange(SLICES * len(CLASSES))
    return SyntheticSet(split.images(n), n % len(CLASSES), n // len(CLASSES), n, torch.ones_like(n), CLASSES)


def kinds(record: Record) -> dict[str, set[torch.dtype]]:
    """Return the types of a record's tensors by field; all of them must be on the host."""
    found: dict[str, list[Tensor]] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Tensor):
            found[field.name] = [value]
        elif isinstance(value, Mapping):
            found[field.name] = list(value.values())
    assert all(each.device.type == "cpu" for tensors in found.values() for each in tensors)
    return {name: {each.dtype for each in tensors} for name, tensors in found.items()}


def repeated(make: Callable[[], R]) -> R:
    """Return what `make` returns, which must be the same bits when it is called again."""
    first, again = make(), make()
    assert content_digest(first) == content_digest(again)
    assert losses(first) == losses(again)
    return first


def losses(record: Record) -> list[dict[str, float]]:
    return list(getattr(record, "history", ()))


def check_near(found: Tensor, expected: Tensor, near: float) -> None:
    """Check that no value differs by more than `near` times the largest one."""
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=near * float(expected.abs().max()))


def check_losses(found: Record, expected: Record, name: str = "loss", first: float = 1e-4) -> None:
    """Check the loss of the first step closely, and those of all others as far as rounding has not spread."""
    ours, theirs = ([row[name] for row in losses(record)] for record in (found, expected))
    assert len(ours) == len(theirs) > 4
    assert ours[0] == pytest.approx(theirs[0], rel=first)
    assert ours == pytest.approx(theirs, rel=20 * first)


# ---- networks that are asked ----------------------------------------------------------------------------------------


def test_a_network_answers_as_on_the_host(
    precise: Device, host: Runtime, teacher: NetworkRecord, student: NetworkRecord, split: ArraySplit
) -> None:
    for network in (teacher, student):
        expected = verdicts(network, split, host)
        found = repeated(partial(verdicts, network, split, precise.runtime))
        assert kinds(found) == {"indices": COUNTS, "predicted": {torch.int32}}
        assert torch.equal(found.indices, expected.indices)
        assert float((found.predicted == expected.predicted).double().mean()) >= precise.agreeing
        block = classify(network, split, range(1, 3), precise.runtime)
        assert torch.equal(block.indices, ((split.labels == 1) | (split.labels == 2)).nonzero().flatten())
        assert float((block.predicted == expected.predicted[block.indices]).double().mean()) >= precise.agreeing


def test_accuracies_are_those_of_the_host_alone_and_together(
    precise: Device, host: Runtime, teacher: NetworkRecord, student: NetworkRecord, split: ArraySplit
) -> None:
    networks, allowed = (teacher, student), (1 - precise.agreeing) * len(split)
    alone = []
    for network in networks:
        found = repeated(partial(measure, network, split, precise.runtime))
        assert kinds(found) == {"right": COUNTS, "images": COUNTS}
        assert found.images.tolist() == [80] * 4
        assert int((found.right - measure(network, split, host).right).abs().sum()) <= allowed
        alone.append(found.accuracy)
    together = repeated(lambda: measure_together(networks, split, precise.runtime))
    assert kinds(together) == {"values": {torch.float64}} and together.n == len(split)
    assert together.values.tolist() == alone and alone[0] > alone[1]


def test_features_are_those_of_the_host(
    precise: Device, host: Runtime, teacher: NetworkRecord, split: ArraySplit
) -> None:
    found = repeated(lambda: features(teacher, split, range(4), precise.runtime))
    expected = features(teacher, split, range(4), host)
    assert kinds(found) == {"indices": COUNTS, "features": FLOATS}
    assert torch.equal(found.indices, expected.indices)
    check_near(found.features, expected.features, precise.near)


def test_pool_statistics_are_those_of_the_host(
    precise: Device, host: Runtime, teacher: NetworkRecord, student: NetworkRecord, split: ArraySplit
) -> None:
    """Of a small pool, and of one of more images than are predicted together."""
    right, hard = (verdicts(network, split, host) for network in (teacher, student))
    for others in ([hard], []):
        found = repeated(partial(pool_statistics, teacher, [right], others, split, precise.runtime))
        expected = pool_statistics(teacher, [right], others, split, host)
        assert kinds(found) == {"layers": FLOATS}
        assert found.images == expected.images == len(pool_of(split.labels, [right], others))
        assert found.layers.keys() == expected.layers.keys()
        for name, values in expected.layers.items():
            check_near(found.layers[name], values, precise.near)


def test_a_teacher_in_another_order_of_classes_is_refused_and_put_right(
    gpu: Runtime, teacher: NetworkRecord, split: ArraySplit
) -> None:
    fair = preflight(teacher, split, TEACHER, gpu)
    assert fair.accuracy > 0.9
    swapped = ArraySplit(split.pixels, torch.tensor([0, 2, 1, 3])[split.labels], CLASSES)
    with pytest.raises(ModelError, match=r'teacher\.class_names=\["amber", "cyan", "blue", "dove"\]'):
        preflight(teacher, swapped, TEACHER, gpu)
    told = replace(teacher, spec=replace(teacher.spec, class_names=("amber", "cyan", "blue", "dove")))
    found = repeated(lambda: preflight(in_order(told, CLASSES), swapped, TEACHER, gpu))
    assert found.right.tolist() == fair.right[[0, 2, 1, 3]].tolist()


# ---- training on T --------------------------------------------------------------------------------------------------


def test_batches_without_a_crop_hold_every_image_once_as_it_is_or_mirrored(
    gpu: Runtime, host: Runtime, teacher: NetworkRecord, split: ArraySplit
) -> None:
    def epoch(runtime: Runtime) -> tuple[Tensor, Tensor]:
        normalizer = Normalizer.of(teacher.spec, runtime.device)
        batches = AugmentedBatches(split, normalizer, 64, "none", True, 0, ("squeeze",), runtime)
        images, labels = zip(*batches.epoch(3), strict=True)
        assert all(each.is_contiguous(memory_format=torch.channels_last) for each in images)
        assert images[0].device == labels[0].device == runtime.device
        return torch.cat(images), torch.cat(labels)

    (images, labels), (expected, expected_labels) = epoch(gpu), epoch(host)
    check_near(images, expected, 1e-6)
    assert torch.equal(labels.cpu(), expected_labels)
    assert all(torch.equal(a, b) for a, b in zip(epoch(gpu), (images, labels), strict=True))
    plain = Normalizer.of(teacher.spec, gpu.device)(split.pixels)
    as_is, mirrored = ((images[:, None] == given[None]).flatten(2).all(2).nonzero() for given in (plain, plain.flip(3)))
    found = torch.cat([as_is, mirrored])
    assert found[:, 0].sort().values.tolist() == found[:, 1].sort().values.tolist() == list(range(len(split)))
    assert 0.3 < len(mirrored) / len(split) < 0.7


def test_a_teacher_is_trained_as_on_the_host(gpu: Runtime, host: Runtime, split: ArraySplit) -> None:
    whole = TEACHER.training.model_copy(update={"batch_size": len(split), "epochs": 8})
    config = TEACHER.model_copy(update={"training": whole})
    found = repeated(lambda: train_teacher(split, config, 0, gpu))
    expected = train_teacher(split, config, 0, host)
    assert kinds(found) == {"state": FLOATS | COUNTS}
    assert found.spec == expected.spec
    check_losses(found, expected)
    for name, value in expected.state.items():
        check_near(found.state[name], value, 0.03)


def with_dropout(p: float) -> nn.Module:
    """Of every kind of layer that draws."""
    network: Any = build_network(ARCH, len(CLASSES), 3, SIZE, 0)
    layers: list[nn.Module] = [
        *network.features,
        nn.Dropout2d(p),
        StochasticDepth(p, "row"),
        nn.Flatten(),
        nn.Dropout(p),
    ]
    whole = nn.Sequential(*layers, network.head)
    seed_stochastic_layers(whole, 0, ARCH)
    return whole


def test_a_network_with_dropout_is_trained_as_on_the_host(
    gpu: Runtime, host: Runtime, teacher: NetworkRecord, synthetic: SyntheticSet
) -> None:
    """Its masks come from the host, new ones in every step."""

    def train(runtime: Runtime, p: float = 0.3) -> NetworkRecord:
        return train_on_set(with_dropout(p), teacher.spec, synthetic, None, TRAINING, LossConfig(), REPLAY, 0, runtime)

    found = repeated(lambda: train(gpu))
    assert kinds(found) == {"state": FLOATS | COUNTS}
    check_losses(found, train(host))
    whole = [row["loss"] for row in train(gpu, 0.0).history]
    assert all(abs(row["loss"] - other) > 0.01 for row, other in zip(found.history, whole, strict=True))


# ---- trajectories ---------------------------------------------------------------------------------------------------


MTT = MttConfig(
    arch="convnet2-w8-in", expert_epochs=5, expert_batch_size=320, expert_learning_rate=0.05, start_epochs=2, span=2,
    steps=3, batch_size=16, step_size=0.05, step_size_learning_rate=1e-4, pixel_learning_rate=20.0,
)  # fmt: skip


@pytest.mark.parametrize("crop", ["none", "pad"])
@pytest.mark.parametrize("arch", [MTT.arch, ARCH])
def test_an_expert_goes_the_way_it_goes_on_the_host(
    crop: Literal["none", "pad"], arch: str, gpu: Runtime, host: Runtime, split: ArraySplit
) -> None:
    config = MTT.model_copy(update={"arch": arch, "crop": crop})
    found = repeated(lambda: train_expert(split, config, 0, 0, gpu))
    expected = train_expert(split, config, 0, 0, host)
    assert kinds(found) == {"snapshots": FLOATS}
    check_losses(found, expected)
    ours, theirs = (
        torch.cat([rows.flatten(1) for rows in way.snapshots.values()], dim=1).double() for way in (found, expected)
    )
    assert torch.equal(ours[0], theirs[0])
    # Here and there a value of nearly 0 has the other sign before a ReLU.
    travelled = (theirs - theirs[0])[1:].norm(dim=1)
    assert bool(((ours - theirs)[1:].norm(dim=1) < 0.02 * travelled).all())


@pytest.mark.parametrize("arch", [MTT.arch, ARCH])
def test_trajectories_are_matched_as_on_the_host(
    arch: str, gpu: Runtime, host: Runtime, split: ArraySplit, selection: Selection, synthetic: SyntheticSet
) -> None:
    """Beside the images of an earlier curriculum."""
    mtt = MTT.model_copy(update={"arch": arch})
    config = SynthesisConfig(objective="mtt", iterations=6, log_every=1, mtt=mtt)
    experts: list[Trajectory] = [train_expert(split, mtt, number, 0, host) for number in range(2)]
    earlier = Shard(synthetic.images, synthetic.labels, synthetic.slices, synthetic.sources, 1)
    later = replace(selection, first_slice=SLICES, indices=selection.indices + SLICES * len(CLASSES))

    def match(runtime: Runtime) -> Shard:
        return match_trajectories(experts, [later], [earlier], split, 2, config, 0, runtime)

    found, expected = repeated(lambda: match(gpu)), match(host)
    assert kinds(found) == {"images": PIXELS, "labels": COUNTS, "slices": COUNTS, "sources": COUNTS}
    assert torch.equal(found.sources, expected.sources) and torch.equal(found.labels, expected.labels)
    check_losses(found, expected, "trajectory", first=1e-3)
    steps = [[row["step_size"] for row in losses(shard)] for shard in (found, expected)]
    assert steps[0] == pytest.approx(steps[1], rel=1e-3) and steps[0][0] != steps[0][-1]
    check_pixels(found.images, expected.images, split.images(found.sources))


def check_pixels(found: Tensor, expected: Tensor, originals: Tensor, agreeing: float = 0.99) -> None:
    """Check that pixels that were rounded last are the host's or neighbours of those, and that all images changed."""
    apart = (found.int() - expected.int()).abs()
    assert float((apart <= 1).double().mean()) >= agreeing
    assert bool((found != originals).flatten(1).any(1).all())


# ---- synthesis ------------------------------------------------------------------------------------------------------


def test_patches_are_those_that_the_host_chooses(
    gpu: Runtime, host: Runtime, student: NetworkRecord, split: ArraySplit, selection: Selection
) -> None:
    """By a teacher that is not so sure that several are equal."""
    originals = split.images(selection.indices.flatten()).view(SLICES, len(CLASSES), 3, SIZE, SIZE)
    config = SynthesisConfig(init="patches", patch_candidates=12)

    def make(runtime: Runtime) -> Tensor:
        network = runtime.network(restore_committee([student]))
        normalizer = Normalizer.of(student.spec, runtime.device)
        return patchwork(network, originals, selection.classes, range(SLICES), config, normalizer, 0, runtime)

    found, again, expected = make(gpu), make(gpu), make(host)
    assert torch.equal(found, again)
    assert found.dtype == torch.uint8 and found.device.type == "cpu" and found.shape == expected.shape
    cells = (found == expected).unfold(2, SIZE // 2, SIZE // 2).unfold(3, SIZE // 2, SIZE // 2).all(1).flatten(3).all(3)
    assert cells.shape == (SLICES * len(CLASSES), 2, 2)
    assert float(cells.double().mean()) >= 0.98


def test_images_are_made_from_patches_towards_the_statistics_of_a_pool(
    gpu: Runtime, host: Runtime, teacher: NetworkRecord, student: NetworkRecord, split: ArraySplit, selection: Selection
) -> None:
    config = SynthesisConfig(
        init="patches", bn_statistics="pool", iterations=6, batch_size=4, log_every=1, class_order="permuted"
    )
    right, hard = (verdicts(network, split, host) for network in (teacher, student))
    pool = pool_statistics(teacher, [right], [hard], split, host)

    def make(runtime: Runtime, statistics: bool = True) -> Shard:
        pools = [pool] if statistics else []
        given = (teacher, student, selection, range(1, 4), split, 2, config, 0, runtime)
        return synthesize(*given, statistics=pools)

    found, expected = repeated(lambda: make(gpu)), make(host)
    assert kinds(found) == {"images": PIXELS, "labels": COUNTS, "slices": COUNTS, "sources": COUNTS}
    check_terms(found, expected, {"ce", "bn", "reg", "adv"}, 1e-3)
    assert float((found.images.int() - expected.images.int()).abs().double().mean()) < 1
    assert losses(make(gpu, False))[0]["bn"] != pytest.approx(losses(found)[0]["bn"], rel=0.01)


def check_terms(found: Shard, expected: Shard, names: set[str], near: float) -> None:
    """Check the terms of every batch's first step closely; by Adam, rounding then spreads fast."""
    assert len(losses(found)) == len(losses(expected)) > 4
    for row, other in zip(losses(found), losses(expected), strict=True):
        assert row.keys() == {"slice", "class", "iteration", *names}
        assert row == pytest.approx(other, rel=min(0.2, near * 10 ** row["iteration"]), abs=5e-6)
        assert all(row[name] > 0 for name in names if name != "reg" or row["iteration"] > 0)


@pytest.mark.parametrize(
    ("arch", "amp", "weight_bn"), [("torchvision/vgg11_bn", "off", 0.01), ("torchvision/alexnet", "bf16", 0.0)]
)
def test_a_teacher_that_pools_adaptively_makes_images_as_on_the_host(
    arch: str, amp: Literal["off", "bf16"], weight_bn: float, gpu: Runtime, host: Runtime
) -> None:
    """Torch's own pooling has no repeatable gradient on a GPU, and would be refused."""
    side = 64
    split = draw(1, seed=2, size=side)
    spec = NetworkSpec(arch, len(CLASSES), 3, side, (0.4, 0.4, 0.45), (0.2, 0.2, 0.2), CLASSES)
    teacher = NetworkRecord(spec, build_network(arch, len(CLASSES), 3, side, 0).state_dict())
    teacher.state["classifier.6.weight"] *= 50  # or it would be as sure of any class
    chosen = torch.arange(2)[None]
    selection = Selection(torch.arange(2), 0, chosen, torch.zeros_like(chosen))
    config = SynthesisConfig(
        init="noise", regularization="feature", weight_reg=1e4, weight_bn=weight_bn,
        iterations=5, batch_size=2, log_every=1,
    )  # fmt: skip

    def make(runtime: Runtime) -> Shard:
        return synthesize(teacher, None, selection, range(1), split, 1, config, 0, runtime)

    runtime = Runtime(gpu.config.model_copy(update={"amp": amp}))
    found, expected = repeated(lambda: make(runtime)), make(host)
    assert kinds(found)["images"] == PIXELS and found.images.shape == (2, 3, side, side)
    check_terms(found, expected, {"ce", "reg"} | ({"bn"} if weight_bn else set()), 1e-3 if amp == "off" else 0.03)


# ---- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["full", "int8", "topk", "topk-int8"])
def test_labels_are_encoded_and_decoded_as_on_the_host(storage: Storage, gpu: Runtime) -> None:
    """Equal logits too, whose order is that of their classes."""
    logits = (4 * torch.randn(64, 10, generator=torch_rng(0, "logits"))).half()
    logits[::2] = logits[::2].round()
    form = LabelForm(storage, 3, 4.0)
    expected, found = form.encode(logits), form.encode(logits.to(gpu.device))
    assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
        name: (value.shape, value.dtype) for name, value in expected.items()
    }
    for name, value in expected.items():
        if name == "codes":
            assert int((found[name].cpu().int() - value.int()).abs().max()) <= 1
            assert float((found[name].cpu() == value).double().mean()) > 0.99
        elif name == "logits" and storage == "topk":
            assert torch.equal(found[name][:, :-1].cpu(), value[:, :-1])
            torch.testing.assert_close(found[name].cpu(), value, rtol=2**-10, atol=2**-20)
        else:
            assert torch.equal(found[name].cpu(), value)
    again = decode({name: value.to(gpu.device) for name, value in expected.items()}, 10)
    assert again.dtype == torch.float16 and again.device == gpu.device
    torch.testing.assert_close(again.cpu(), decode(expected, 10), rtol=2**-10, atol=2**-20)


def labels_of(teacher: NetworkRecord, synthetic: SyntheticSet, form: LabelForm, runtime: Runtime) -> LabelShard:
    """Batches of 10, 10 and 4, in epochs of two of the groups that a GPU makes at a time."""
    return relabel(Teaching(teacher), synthetic, range(14, 20), 10, REPLAY, 0, runtime, form=form)


@pytest.mark.parametrize("storage", ["int8", "topk", "topk-int8"])
def test_labels_in_few_bytes_are_written_of_the_whole_ones(
    storage: Storage, gpu: Runtime, host: Runtime, teacher: NetworkRecord, synthetic: SyntheticSet
) -> None:
    whole = repeated(lambda: labels_of(teacher, synthetic, LabelForm(), gpu))
    bounds = batch_bounds(len(synthetic.labels), 10)
    expected = unpacked(labels_of(teacher, synthetic, LabelForm(), host), bounds).logits
    assert kinds(whole) == {"logits": {torch.float16}}
    logits = unpacked(whole, bounds).logits
    check_near(logits, expected, 1e-3)
    form = LabelForm(storage, 2, 4.0)
    packed = repeated(lambda: labels_of(teacher, synthetic, form, gpu))
    layout = form.layout(len(CLASSES))
    assert kinds(packed) == {"columns": {column.dtype for column in layout.values()}}
    assert {name: column.dtype for name, column in packed.columns.items()} == {
        name: column.dtype for name, column in layout.items()
    }
    for epoch in range(14, 20):
        for step, (start, stop) in enumerate(bounds):
            written = batch_labels(packed, epoch, step, (start, stop))
            alone = decode(form.encode(logits[epoch - 14, start:stop]), len(CLASSES))
            span = float(alone.max() - alone.min())
            torch.testing.assert_close(written, alone, rtol=2**-9, atol=span / 254 if "int8" in storage else 2**-10)


@pytest.mark.parametrize("storage", ["full", "int8", "topk", "topk-int8"])
def test_a_network_learns_from_stored_labels_as_on_the_host(
    storage: Storage, gpu: Runtime, host: Runtime, teacher: NetworkRecord, synthetic: SyntheticSet
) -> None:
    form = LabelForm(storage, 2, 4.0)
    config = EvaluationConfig(training=TRAINING, temperature=4.0)
    shards = [
        relabel(Teaching(teacher), synthetic, part, TRAINING.batch_size, REPLAY, 0, host, form=form)
        for part in (range(0, 5), range(5, 8))
    ]
    replay = Replay(synthetic, teacher.spec, REPLAY, TRAINING.batch_size, 0, gpu)
    (views,) = replay.views(6)
    (read,) = StoredLabels(shards, replay.bounds).of(6, views)
    assert read.dtype == torch.float16 and read.device == gpu.device
    check_near(read, unpacked(shards[1], replay.bounds).logits[1], 2**-10)

    def train(runtime: Runtime) -> NetworkRecord:
        return train_network(synthetic, shards, teacher.spec, ARCH, 0, config, REPLAY, 0, runtime)

    found = repeated(lambda: train(gpu))
    assert kinds(found) == {"state": FLOATS | COUNTS}
    check_losses(found, train(host))


# ---- classes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["mixup", "cutmix", "none"])
def test_a_network_learns_from_mixed_classes_as_on_the_host(
    mix: Literal["mixup", "cutmix", "none"],
    gpu: Runtime,
    host: Runtime,
    teacher: NetworkRecord,
    synthetic: SyntheticSet,
) -> None:
    replay = REPLAY.model_copy(update={"mix": mix})
    config = EvaluationConfig(training=TRAINING, labels="hard")
    ours, theirs = (
        list(ClassReplay(Replay(synthetic, teacher.spec, replay, 10, 0, runtime), 20).epoch(17))
        for runtime in (gpu, host)
    )
    assert [len(batch[0]) for batch in ours] == [len(batch[0]) for batch in theirs] == [10, 10, 4]
    for (images, *classes), (expected, *others) in zip(ours, theirs, strict=True):
        assert all(each.device == gpu.device for each in (images, *classes))
        check_near(images, expected, 1e-5)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(classes, others, strict=True))
        labels, partners, share = classes
        assert share.dtype == torch.float64 and labels.dtype == partners.dtype == torch.int64
        assert (float(share) == 1 and torch.equal(labels, partners)) if mix == "none" else 0 <= float(share) < 1

    def train(runtime: Runtime) -> NetworkRecord:
        return train_network(synthetic, [], teacher.spec, ARCH, 0, config, replay, 0, runtime)

    found = repeated(lambda: train(gpu))
    assert kinds(found) == {"state": FLOATS | COUNTS}
    check_losses(found, train(host))


def test_classes_are_learnt_in_steps_as_on_the_host(
    gpu: Runtime, host: Runtime, teacher: NetworkRecord, synthetic: SyntheticSet
) -> None:
    loss = LossConfig(temperature=4.0, hard_label_weight=0.1)

    def learn(classes: tuple[int, ...], runtime: Runtime) -> NetworkRecord:
        given = (synthetic, Teaching(teacher), classes, ARCH, 0, TRAINING, loss, REPLAY, 0, runtime)
        return learn_classes(*given)

    found = repeated(lambda: learn((0, 2), gpu))
    assert kinds(found) == {"state": FLOATS | COUNTS} and found.spec.class_names == ("amber", "cyan")
    check_losses(found, learn((0, 2), host))
    config = EvaluationConfig(training=TRAINING, **loss.model_dump())
    last = train_network(synthetic, Teaching(teacher), teacher.spec, ARCH, 0, config, REPLAY, 0, gpu)
    assert content_digest(learn((0, 1, 2, 3), gpu)) == content_digest(last)
