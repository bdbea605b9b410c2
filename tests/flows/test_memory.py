"""The memory that a recipe is said to need: counted, compared with what torch allocates, refused if not there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LossConfig, train_on_set
from cudd_core.errors import ResourceError
from cudd_core.labelling import Teaching
from cudd_core.models.committee import Committee
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.models.stateless import stateless
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.mtt import MttObjective
from cudd_core.records import NetworkRecord, NetworkSpec, SyntheticSet, Trajectory
from cudd_core.training import TrainingConfig, make_optimizer
from flows import memory
from flows.memory import (
    ERROR,
    PROCESS_BYTES,
    check_memory,
    footprint,
    host_bytes,
    peak,
    stage_memory,
    stage_tensors,
)
from flows.recipe import Recipe
from flows.recipes import apply_overrides, get_recipe

ARCH, SIZE, BATCH = "convnet3-w64", 32, 24


def recipe(*overrides: str) -> Recipe:
    sizes = [f"teacher.arch={ARCH}", f"synthesis.batch_size={BATCH}", f"evaluation.training.batch_size={BATCH}"]
    return apply_overrides(get_recipe("cifar10-convnet-ipc10"), [*sizes, *overrides])


def check(chosen: Recipe, ahead: Collection[str] | None = None) -> None:
    """Check a run that has yet to compute the stages `ahead`; None: all of them."""
    check_memory(chosen, 10, lambda: stage_memory(chosen, 10) if ahead is None else ahead)


def allocated(body: Callable[[], object]) -> int:
    """Return the peak of the bytes that torch's allocator holds for `body`."""
    body()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        body()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    changes = [
        (event.start_ns(), event.nbytes())
        for event in seen.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = highest = 0
    for _, change in sorted(changes, key=lambda entry: entry[0]):
        held += change
        highest = max(highest, held)
    return highest


def close(model: float, measured: float) -> bool:
    return (1 - ERROR) * measured < model < (1 + ERROR) * measured


@pytest.mark.parametrize("convolution", ["winograd", "direct"])
def test_training_takes_what_the_model_says(convolution: str) -> None:
    chosen = recipe(f"compute.convolution={convolution}")
    runtime = Runtime(chosen.compute)
    network = runtime.network(build_network(ARCH, 10, 3, SIZE, 0)).train()
    optimizer = make_optimizer(network, TrainingConfig())
    images = runtime.images(torch.zeros(BATCH, 3, SIZE, SIZE))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        network(images).square().mean().backward()
        optimizer.step()

    weights = sum(value.nbytes for value in network.state_dict().values())
    # The weights and AdamW's moments are there before the step.
    assert close(stage_tensors(chosen, 10)["train_network"], allocated(step) + 3 * weights)


def test_training_without_stored_labels_holds_the_teacher_too() -> None:
    chosen = recipe("relabel.storage=none", "schedule.ipc=4", "schedule.step=4", "evaluation.training.batch_size=4")
    runtime, names = Runtime(chosen.compute), tuple(map(str, range(10)))
    spec = NetworkSpec(ARCH, 10, 3, SIZE, (0.5,) * 3, (0.25,) * 3, names)
    teacher = NetworkRecord(spec, build_network(ARCH, 10, 3, SIZE, 0).state_dict())
    rows = torch.arange(40)
    images = torch.zeros(40, 3, SIZE, SIZE, dtype=torch.uint8)
    synthetic = SyntheticSet(images, rows % 10, rows // 10, rows, torch.ones_like(rows), names)
    training = TrainingConfig(epochs=1, batch_size=4)

    def train() -> None:
        network = build_network(ARCH, 10, 3, SIZE, 1)
        parts = (synthetic, Teaching(teacher), training, LossConfig(), ReplayConfig(), 0, runtime)
        train_on_set(network, spec, *parts)

    held = sum(value.nbytes for value in teacher.state.values())
    stated = stage_tensors(chosen, 10)
    assert (
        stated["train_network"] > 1.5 * stage_tensors(recipe("evaluation.training.batch_size=4"), 10)["train_network"]
    )
    assert close(stated["train_network"], allocated(train) + held)


def test_classes_alone_are_taught_without_a_teacher() -> None:
    def evaluate(*overrides: str) -> int:
        return stage_tensors(recipe(*overrides), 10)["train_network"]

    assert evaluate("relabel.storage=none", "evaluation.labels=hard") == evaluate() < evaluate("relabel.storage=none")


@pytest.mark.parametrize("arch", [ARCH, "resnet18-w16"])
def test_synthesis_takes_what_the_model_says(arch: str) -> None:
    chosen = recipe(f"teacher.arch={arch}")
    runtime = Runtime(chosen.compute)
    networks = [
        runtime.network(freeze_batchnorm(build_network(arch, 10, 3, SIZE, seed).eval().requires_grad_(False)))
        for seed in (0, 1)
    ]
    pixels = runtime.images(torch.zeros(BATCH, 3, SIZE, SIZE)).requires_grad_()
    labels = torch.zeros(BATCH, dtype=torch.int64)
    with ExitStack() as stack:
        objective = CuddObjective(Committee([networks[0]], [arch]), networks[1], SynthesisConfig(), runtime, stack)

        def step() -> None:
            pixels.grad = None
            torch.stack(list(objective.terms(pixels * 1, pixels.detach(), labels).values())).sum().backward()

        held = 2 * sum(value.nbytes for value in networks[0].state_dict().values())
        assert close(stage_tensors(chosen, 10)["synthesize"], allocated(step) + held)


@pytest.mark.parametrize(("images", "steps"), [(10, 4), (20, 4), (20, 8)])
def test_trajectory_matching_takes_what_the_model_says(images: int, steps: int) -> None:
    chosen = apply_overrides(
        get_recipe("cifar10-mtt-ipc10"),
        ["synthesis.mtt.arch=convnet3-w32-in", f"synthesis.mtt.steps={steps}", f"synthesis.mtt.batch_size={images}",
         "synthesis.mtt.experts=1", "compute.device=cpu"],
    )  # fmt: skip
    arch = chosen.synthesis.mtt.arch
    network = stateless(build_network(arch, 10, 3, SIZE, 0), arch)
    snapshots = {name: torch.stack([value.detach()] * 3) for name, value in network.named_parameters()}
    expert = Trajectory(NetworkSpec(arch, 10, 3, SIZE, (0.5,) * 3, (0.25,) * 3, tuple(map(str, range(10)))), snapshots)
    nothing = torch.zeros(0, 3, SIZE, SIZE), torch.zeros(0, dtype=torch.int64)
    objective = MttObjective(network, [expert], nothing, chosen.synthesis, Runtime(chosen.compute))
    pixels, step_size = torch.zeros(images, 3, SIZE, SIZE, requires_grad=True), torch.tensor(0.01, requires_grad=True)

    def step() -> None:
        pixels.grad = step_size.grad = None
        objective.distance(pixels, torch.arange(images) % 10, step_size, expert, 0, np.random.default_rng(0)).backward()

    assert close(stage_tensors(chosen, 10)["synthesize"], allocated(step))


def test_a_network_is_counted() -> None:
    trained, frozen = (footprint(ARCH, 10, 3, SIZE, trains, ComputeConfig()) for trains in (True, False))
    network = build_network(ARCH, 10, 3, SIZE, 0)
    assert trained.weights == sum(value.nbytes for value in network.state_dict().values())
    assert trained.image > frozen.image > 64 * 32 * 32 * 4  # more than the input of the first ReLU
    assert trained.step(20) - trained.step(10) == trained.step(30) - trained.step(20)


def test_the_largest_stage_counts_once_a_task() -> None:
    name, one = peak({"a": 3, "b": 5}, 1)
    assert (name, peak({"a": 3, "b": 5}, 4)[1] - one) == ("b", 15)


def test_bigger_batches_and_images_need_more() -> None:
    small = stage_tensors(recipe(), 10)["synthesize"]
    assert stage_tensors(recipe(f"synthesis.batch_size={2 * BATCH}"), 10)["synthesize"] > 1.5 * small
    assert stage_tensors(recipe("data.image_size=64"), 10)["synthesize"] > 3 * small


def test_a_shared_training_has_a_part_of_the_batch_in_each_process() -> None:
    def needed(processes: int, batch: int) -> int:
        shared = ("compute.device=cuda", f"compute.data_parallel={processes}")
        return stage_tensors(recipe(*shared, f"evaluation.training.batch_size={batch}"), 10)["train_network"]

    message = footprint(ARCH, 10, 3, SIZE, True, ComputeConfig(device="cuda")).weights
    assert needed(4, 4 * BATCH) == needed(4, 4 * BATCH - 3) == needed(1, BATCH) + message


def test_a_shared_training_on_a_cpu_is_a_process_each() -> None:
    alone, shared = (recipe(f"compute.data_parallel={count}") for count in (1, 2))
    tensors, held = stage_tensors(shared, 10), stage_memory(shared, 10)
    one, its_tensors = stage_memory(alone, 10), stage_tensors(alone, 10)
    for stage, size in tensors.items():
        process = PROCESS_BYTES if stage in ("squeeze", "train_student", "train_network") else 0
        assert held[stage] == pytest.approx(one[stage] / its_tensors[stage] * size + process, rel=1e-6)


def test_every_teacher_of_several_is_held() -> None:
    one, two = (stage_tensors(recipe(*more), 10) for more in ((), ("other_teachers=[{seed: 1}]",)))
    teacher = footprint(ARCH, 10, 3, SIZE, False, recipe().compute, watched=True)
    assert two["synthesize"] - one["synthesize"] == teacher.weights + teacher.fixed + BATCH * teacher.image
    assert two["relabel"] - one["relabel"] == teacher.weights  # nothing is kept, and they answer in turn
    assert (two["squeeze"], two["classify"]) == (one["squeeze"], one["classify"])
    larger = stage_tensors(recipe("other_teachers=[{arch: convnet3-w128, training: {batch_size: 512}}]"), 10)
    assert larger["squeeze"] > 2 * one["squeeze"] and larger["classify"] > one["classify"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_labelling_holds_the_images_that_are_labelled_together(device: str) -> None:
    """Never more than an epoch of the set on a CPU or sixteen on a GPU, and a batch where no two fit."""

    def held(*settings: str) -> float:
        chosen = recipe(f"compute.device={device}", *settings)
        teacher = footprint(ARCH, 10, 3, SIZE, False, chosen.compute)
        pixels = 10 * chosen.schedule.ipc * 3 * SIZE**2
        working = stage_tensors(chosen, 10)["relabel"] - teacher.weights - pixels
        return (working - teacher.filters) / teacher.work

    assert (
        held("schedule.ipc=1", "schedule.step=1", "evaluation.training.batch_size=16")
        == {"cpu": 10, "cuda": 160}[device]
    )
    most = {"cpu": 2**19, "cuda": 2**22}[device] // (3 * SIZE**2)
    many = ("schedule.ipc=500", "evaluation.training.batch_size")
    assert held(many[0], f"{many[1]}=16") == most // 16 * 16
    assert held(many[0], f"{many[1]}=2000") == 2000


def test_of_a_large_set_a_gpu_has_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def relabel(ipc: int) -> int:
        return stage_tensors(recipe("compute.device=cuda", f"schedule.ipc={ipc}"), 10)["relabel"]

    image = 10 * 3 * SIZE**2  # one of every class
    assert relabel(2000) - relabel(1000) == 1000 * image
    monkeypatch.setattr(memory, "RESIDENT_BYTES", 100 * image)
    assert relabel(2000) == relabel(1000)


def test_bf16_keeps_half() -> None:
    chosen = recipe("compute.convolution=direct")
    whole, half = (
        stage_tensors(recipe("compute.convolution=direct", f"compute.amp={amp}"), 10) for amp in ("off", "bf16")
    )
    assert whole == stage_tensors(chosen, 10)
    assert 0.5 * whole["synthesize"] <= half["synthesize"] < 0.6 * whole["synthesize"]


def test_a_process_on_a_cpu_takes_more_than_its_tensors() -> None:
    for device, takes_more in (("cpu", True), ("cuda", False)):
        chosen = recipe(f"compute.device={device}")
        tensors, held = stage_tensors(chosen, 10), stage_memory(chosen, 10)
        assert tensors.keys() == held.keys()
        assert all((held[stage] > size) is takes_more and held[stage] >= size for stage, size in tensors.items())


def test_what_cannot_fit_is_refused_with_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDD_SLOTS", "2")
    check(recipe())
    with pytest.raises(ResourceError, match=r"synthesize needs about .* \(2 tasks at once\).*synthesis\.batch_size"):
        check(recipe("synthesis.batch_size=1000000"))
    with pytest.raises(ResourceError, match=r"train_network .*evaluation\.training\.batch_size"):
        check(recipe("evaluation.training.batch_size=1000000"))


def test_tasks_that_share_a_gpu_have_to_fit_it_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDD_SLOTS", raising=False)
    one, three = (recipe("compute.device=cuda", f"compute.lanes={lanes}") for lanes in (1, 3))
    _, needed = peak(stage_memory(one, 10), 1)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(memory, "_gpu_bytes", lambda: int(needed))
    check(one)
    with pytest.raises(ResourceError, match=r"3 tasks at once.*compute\.lanes=1"):
        check(three)
    monkeypatch.setenv("CUDD_SLOTS", "6")
    with pytest.raises(ResourceError, match=r"3 tasks at once.*CUDD_SLOTS=2"):
        check(one)


def test_sets_have_to_fit_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = recipe("compute.device=cuda", "schedule.ipc=20")
    labels = 2 * 100 * (10 * 20) * 10 * 2  # of 100 epochs, being made, and being stored
    sets_and_shard = (2 * 20 + 1) * 10 * 3 * 32 * 32 + labels
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(memory, "_gpu_bytes", lambda: 10**12)
    monkeypatch.setattr(memory, "memory_bytes", lambda: sets_and_shard)
    check(chosen)
    monkeypatch.setattr(memory, "memory_bytes", lambda: sets_and_shard - 1)
    with pytest.raises(ResourceError, match=r"Sets and labels take.*schedule\.ipc"):
        check(chosen)
    check(chosen, ahead={"synthesize"})  # whatever reads the set is stored


def test_every_method_and_every_process_of_a_training_holds_a_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    sizes = [
        host_bytes(
            recipe("compute.device=cuda", f"compute.data_parallel={w}", f"baselines={names}", "relabel.storage=none"),
            10,
        )
        for w, names in ((1, "[]"), (1, "random,selection"), (4, "[]"))
    ]
    image_bytes = 10 * 10 * 3 * 32 * 32
    assert [size // image_bytes for size in sizes] == [1, 3, 5]


def test_labels_that_a_task_makes_are_in_memory_until_they_are_stored() -> None:
    """Of many classes they are what takes most: for 10,450, 22 kB for each image and epoch."""
    kept, stored = (stage_memory(recipe(f"relabel.storage={form}"), 1000) for form in ("none", "full"))
    sizes = [
        stage_memory(recipe(f"relabel.epochs_per_shard={epochs}"), 1000)["relabel"] - kept["relabel"]
        for epochs in (1, 100, 600)
    ]
    assert sizes == [epochs * (1000 * 10) * 1000 * 2 for epochs in (1, 100, 600)]
    assert stored["relabel"] - kept["relabel"] == sizes[1] and stored["squeeze"] == kept["squeeze"]
    with_hard_labels = stage_memory(recipe("evaluation.labels=hard", "student.training.epochs=7"), 1000)
    assert with_hard_labels["relabel"] - kept["relabel"] == 7 * (1000 * 5) * 1000 * 2  # the student's, of curriculum 1


def test_only_what_cannot_fit_even_if_the_model_is_off_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, needed = peak(stage_memory(recipe(), 10), 1)
    monkeypatch.setenv("CUDD_SLOTS", "1")
    monkeypatch.setattr(memory, "memory_bytes", lambda: int(needed * (1 - ERROR)) + 1)
    check(recipe())
    monkeypatch.setattr(memory, "memory_bytes", lambda: int(needed * (1 - ERROR)) - 1)
    with pytest.raises(ResourceError):
        check(recipe())


def test_a_stage_with_nothing_left_to_compute_needs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are left, the hungriest is named. What is left is asked only if memory is short."""
    sizes = stage_memory(recipe(), 10)
    ordered = sorted(sizes, key=lambda stage: sizes[stage])
    monkeypatch.setattr(memory, "memory_bytes", lambda: 0)
    for few in (set[str](), {"select", "keep"}):
        check(recipe(), few)
    for count in range(1, len(ordered) + 1):
        with pytest.raises(ResourceError, match=rf"^{ordered[count - 1]} needs about"):
            check(recipe(), {"keep", *ordered[:count]})
    monkeypatch.setattr(memory, "memory_bytes", lambda: 10**15)
    check_memory(recipe(), 10, lambda: pytest.fail("the store was read"))
