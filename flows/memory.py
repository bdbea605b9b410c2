"""How much memory the stages of a recipe need at most, computed without data and without running a stage.

What a network keeps for its backward pass is counted, not guessed: a few images are passed through it and the tensors
that autograd saves are added up, at two batch sizes to separate what grows with the batch. Added to this are the
weights (in training also gradients and AdamW's two moments) and what the largest layer needs while it computes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cudd_core.compute.cpu.batchnorm import is_built
from cudd_core.compute.cpu.kernels import Fusible, use_cpu_kernels
from cudd_core.compute.cpu.winograd import WinogradConv2d, working_bytes
from cudd_core.compute.runtime import ComputeConfig
from cudd_core.data.replay import RESIDENT_BYTES, batch_bounds, batches_together, epochs_together
from cudd_core.errors import ResourceError
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.frozen_batchnorm import freeze_batchnorm
from cudd_core.models.registry import build_network
from cudd_core.prediction import PREDICTED_TOGETHER
from cudd_core.schedule import curriculum_boundaries
from cudd_core.training import TrainingConfig
from flows.recipe import Recipe
from tasks.machine import memory_bytes
from tasks.slots import slot_count

ERROR = 0.3
"""How far the model may be off, which tests/flows/test_memory.py checks."""

PROCESS_BYTES = 1_200_000_000
"""A run's process apart from its tensors: torch, Prefect and MLflow (0.6 GB), what they keep, and mapped files (up to
0.6 GB, which the system may reclaim); on a GPU, its context and libraries."""

_TRAININGS = frozenset({"squeeze", "train_student", "train_network"})
_READ_THE_SET = frozenset({"relabel", "assemble", "train_network"})

_GAPS, _GAPS_OF_LAYERS = 1.6, 2.0
"""Resident memory ÷ tensors on a CPU: glibc keeps freed blocks (`keep_freed_memory`), and blocks of different sizes
leave gaps between them. Measured: 1.3 to 1.9, and 1.6 to 2.4 where frozen BatchNorm, ReLU and pooling are separate
layers (benchmarks/memory.py)."""
_WORK = 1.5  # outputs of the largest layer that are alive while it computes, besides what is kept


@dataclass(frozen=True)
class Footprint:
    """Bytes of one network in one use.

    `weights`: with buffers. `fixed`, and `image` for each image: kept for backward. `work`: what the largest layer
    needs for each image while it computes; `unfused`: the same for layers that are fused unless a gradient goes to the
    pixels. `filters`: the largest transformed filters.
    """

    weights: int
    fixed: int
    image: int
    work: int
    unfused: int
    filters: int

    def step(self, batch: int) -> int:
        """Return the bytes, besides the weights, of a forward and backward pass."""
        return self.fixed + batch * self.image + self.working(batch, fused=False)

    def inference(self, batch: int) -> int:
        """Return the bytes of a forward pass that keeps nothing, weights included."""
        return self.weights + self.working(batch)

    def working(self, batch: int, fused: bool = True) -> int:
        """Return the most bytes that a layer needs while it computes."""
        work = self.work if fused else max(self.work, self.unfused)
        return batch * work + self.filters


@functools.cache
def footprint(
    arch: str,
    num_classes: int,
    channels: int,
    image_size: int,
    trains: bool,
    compute: ComputeConfig,
    watched: bool = False,
) -> Footprint:
    """Return the footprint, in float32, of a network that is trained, or frozen with a gradient to the pixels.

    `watched`: the batch statistics of the frozen network have gradients too.
    """
    network = build_network(arch, num_classes, channels, image_size, seed=0)
    if not trains:
        freeze_batchnorm(network.eval().requires_grad_(False))
    if compute.device == "cpu" and compute.convolution == "winograd" and compute.amp == "off":
        use_cpu_kernels(network)
    network.to(memory_format=torch.channels_last)
    own = [*network.parameters(), *network.buffers()]
    work, unfused, filters = [0.0], [0.0], [0]
    # The hooks below prevent fusion. Layers that are fused otherwise are those of the first level, at full image size.
    fused = image_size if isinstance(network, Fusible) and network.fused else 0

    def look(layer: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor) or list(layer.children()):
            return
        outputs = _WORK * output.nbytes / len(output)
        if output.shape[-1] == fused:
            unfused.append(outputs * (not trains))
            if isinstance(layer, nn.Conv2d) and not trains:  # what a filter sees at every pixel; training keeps it
                work.append(_WORK * output[0, 0].nbytes * (9 * layer.in_channels + 1) + output[0].nbytes / 4)
            return
        if isinstance(layer, WinogradConv2d):
            filters.append(working_bytes(layer))
        work.append(outputs)

    def saved(n: int) -> int:
        with BatchNormInputs(network, arch) if watched else contextlib.nullcontext():
            return _saved(network, own, torch.zeros(n, channels, image_size, image_size), not trains)

    hooks = [layer.register_forward_hook(look) for layer in network.modules()]
    saved(2)
    for hook in hooks:
        hook.remove()
    few, more = saved(2), saved(4)
    image = (more - few) // 2
    weights = sum(value.nbytes for value in own)
    return Footprint(weights, max(0, few - 2 * image), image, int(max(work)), int(max(unfused)), max(filters))


def _saved(network: nn.Module, own: list[Tensor], images: Tensor, to_pixels: bool) -> int:
    """Return the bytes that autograd keeps of a forward pass, each storage once, without the network's own tensors."""
    weights = {value.untyped_storage().data_ptr() for value in own}
    found: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return value

    images = images.contiguous(memory_format=torch.channels_last).requires_grad_(to_pixels)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        network(images)
    return sum(found.values())


def stage_memory(recipe: Recipe, num_classes: int) -> dict[str, int]:
    """Return the bytes that one task of each heavy stage takes on its device, besides the process."""
    tensors, compute = stage_tensors(recipe, num_classes), recipe.compute
    if compute.device != "cpu":
        return tensors
    # Processes that share a training are in addition to the run's own.
    process = PROCESS_BYTES if compute.data_parallel > 1 else 0
    in_one_pass = compute.convolution == "winograd" and compute.amp == "off" and is_built(torch.float32)
    gaps = _GAPS if in_one_pass else _GAPS_OF_LAYERS
    sizes = {
        stage: int(_GAPS * size) + process if stage in _TRAININGS else int(gaps * size)
        for stage, size in tensors.items()
    }
    return sizes | {"relabel": sizes["relabel"] + label_bytes_of_a_task(recipe, num_classes)}


def label_bytes_of_a_task(recipe: Recipe, num_classes: int) -> int:
    """Return the most bytes of labels that one task makes. The host holds all of them until they are stored."""
    relabel, boundaries = recipe.relabel, curriculum_boundaries(recipe.schedule)
    if relabel.storage == "none":
        return 0
    taught = boundaries if recipe.student.train_last else boundaries[:-1]
    trainings = [(ipc, recipe.student.training_of(j)) for j, ipc in enumerate(taught, start=1)]
    if recipe.evaluation.labels != "hard":
        trainings.append((boundaries[-1], recipe.evaluation.training))

    def bytes_of(images: int, training: TrainingConfig) -> int:
        epochs = max(map(len, relabel.shards(training.epochs)))
        batches = len(batch_bounds(images, training.batch_size))
        return relabel.form(1.0).bytes(num_classes, epochs, images, batches)

    return max((bytes_of(num_classes * ipc, training) for ipc, training in trainings), default=0)


def stage_tensors(recipe: Recipe, num_classes: int) -> dict[str, int]:
    """Return the bytes of the tensors that one task of each heavy stage has at once.

    With bf16, what is kept for backward is assumed to be half of that in float32. For a training that several processes
    share, it is what each of them needs.
    """
    channels, size, compute = recipe.data.channels, recipe.data.image_size, recipe.compute
    kept = 0.5 if compute.amp == "bf16" else 1.0

    def of(arch: str, trains: bool, watched: bool = False) -> Footprint:
        return footprint(arch, num_classes, channels, size, trains, compute, watched)

    def training(arch: str, config: TrainingConfig) -> int:
        network = of(arch, True)
        copies = 5 if config.ema_decay > 0 else 4  # weights, gradients, two moments; with EMA, the average
        processes = compute.data_parallel
        if processes == 1:
            return int(copies * network.weights + kept * network.step(config.batch_size))
        # The message between processes holds the gradients again; a step has the largest part of a batch.
        step = kept * network.step(-(-config.batch_size // processes))
        return int((copies + 1) * network.weights + step)

    batch = recipe.evaluation.training.batch_size
    values, images = channels * size * size, num_classes * recipe.schedule.ipc
    # Of a large set, a GPU holds only the batch. On a CPU, tasks share one set.
    pixels = images * values if compute.device == "cpu" or images * values <= RESIDENT_BYTES else 0
    labelled = min(
        batch * batches_together(batch, values, compute.device),
        images * epochs_together(images * values, compute.device),
    )
    teachers, student = [of(teacher.arch, False) for teacher in recipe.teachers], of(recipe.student_arch, False)
    committee = together(teachers)

    def taught(*trainings: int) -> int:
        # Labels that are not stored are computed between steps.
        if recipe.relabel.storage != "none":
            return max(trainings)
        return committee.weights + max(*trainings, int(kept * committee.working(labelled)))

    evaluated = [training(arch, recipe.evaluation.training) for arch in recipe.evaluation_archs]
    stages = {
        "classify": int(max(kept * network.inference(PREDICTED_TOGETHER) for network in (*teachers, student))),
        "relabel": pixels + int(kept * committee.inference(labelled)),
        "train_student": pixels + taught(training(recipe.student_arch, recipe.student.training)),
        "train_network": pixels + (max(evaluated) if recipe.evaluation.labels == "hard" else taught(*evaluated)),
    }
    trained = [training(teacher.arch, teacher.training) for teacher in recipe.teachers if teacher.source == "train"]
    if trained:
        stages["squeeze"] = max(trained)
    if recipe.synthesis.matches_trajectories:
        stages |= _trajectory_matching(recipe, num_classes)
    elif recipe.synthesis.enabled:
        looked_through = [of(teacher.arch, False, recipe.synthesis.weight_bn > 0) for teacher in recipe.teachers]
        every = together([*looked_through, student])
        if compute.device == "cuda":  # where the student computes beside the teachers
            every = replace(every, work=together(looked_through).work + student.work)
        stages["synthesize"] = int(every.weights + kept * every.step(recipe.synthesis.batch_size))
    return stages


def _trajectory_matching(recipe: Recipe, num_classes: int) -> dict[str, int]:
    """Return the bytes of experts, with a snapshot of every epoch, and of students with N differentiated steps.

    All in float32. The graph of a step holds its forward pass and that of its gradient; while the last step is
    differentiated, three more passes are alive (tests/flows/test_memory.py).
    """
    mtt, compute = recipe.synthesis.mtt, recipe.compute.model_copy(update={"amp": "off", "convolution": "direct"})
    network = footprint(mtt.arch, num_classes, recipe.data.channels, recipe.data.image_size, True, compute)
    images = num_classes * recipe.schedule.ipc
    step = network.fixed + min(mtt.batch_size or images, images) * network.image
    snapshots = (mtt.last_epoch + 1) * network.weights if compute.device == "cpu" else 0
    return {
        "train_expert": 3 * network.weights + network.step(mtt.expert_batch_size) + snapshots,
        "synthesize": (2 * mtt.steps + 3) * (step + network.weights) + mtt.experts * snapshots,
    }


def together(networks: Sequence[Footprint]) -> Footprint:
    """Return the footprint of networks that compute in turn, each keeping its tensors until a joint backward pass."""
    weights, fixed, image = (sum(getattr(each, part) for each in networks) for part in ("weights", "fixed", "image"))
    work, unfused, filters = (max(getattr(each, part) for each in networks) for part in ("work", "unfused", "filters"))
    return Footprint(weights, fixed, image, work, unfused, filters)


def peak(stages: Mapping[str, int], tasks_at_once: int) -> tuple[str, int]:
    """Return the stage that needs most, and the bytes of a process with `tasks_at_once` of its tasks."""
    name = max(stages, key=lambda stage: stages[stage])
    return name, PROCESS_BYTES + tasks_at_once * stages[name]


def host_bytes(recipe: Recipe, num_classes: int) -> int:
    """Return the bytes that sets take beside a GPU, each read once by a process, and a shard of the one being read.

    Added are the labels of every task that labels, and of as many whose labels are being stored. On a CPU all this is
    part of what a stage takes (`stage_memory`), so this is 0.
    """
    if recipe.compute.device == "cpu":
        return 0
    schedule, compute, values = recipe.schedule, recipe.compute, recipe.data.channels * recipe.data.image_size**2
    shard = min(num_classes, schedule.block_size) * min(schedule.ipc, schedule.slices_per_shard)
    # Tasks work on different methods' sets. The finished set is read, to be stored, without waiting for a GPU.
    sets = 1 + min(len(recipe.baselines), slot_count(compute))
    if compute.data_parallel > 1:
        sets += compute.data_parallel  # processes, which share a training
    labels = 2 * slot_count(compute) * label_bytes_of_a_task(recipe, num_classes)
    return (sets * num_classes * schedule.ipc + shard) * values + labels


def check_memory(recipe: Recipe, num_classes: int, ahead: Callable[[], Collection[str]]) -> None:
    """Check that the stages of a recipe fit this machine's memory, or its GPU's, if need be with `ERROR` allowed for.

    Beside a GPU, the whole set has to fit this machine's memory.

    `ahead`: returns the stages that have something left to compute; called only if one of all stages does not fit.

    Raises:
        ResourceError: one of those does not fit.
    """
    gpu = recipe.compute.device == "cuda"
    places = torch.cuda.device_count() if gpu else 1
    at_once = -(-slot_count(recipe.compute) // places)
    there = _gpu_bytes() if gpu else memory_bytes()

    def too_much(stages: Mapping[str, int]) -> bool:
        return bool(stages) and peak(stages, at_once)[1] * (1 - ERROR) > there

    stages = stage_memory(recipe, num_classes)
    if too_much(stages):
        left = ahead()
        stages = {name: size for name, size in stages.items() if name in left}
    if too_much(stages):
        name, needed = peak(stages, at_once)
        by_recipe = gpu and not os.environ.get("CUDD_SLOTS")
        setting = "compute.lanes=1" if by_recipe else f"CUDD_SLOTS={places}"
        fewer = f" Or set {setting}." if at_once > 1 else ""
        raise ResourceError(
            f"{name} needs about {needed / 1e9:.1f} GB ({at_once} task{'s' * (at_once > 1)} at once); "
            f"{'the GPU' if gpu else 'this machine'} has {there / 1e9:.1f} GB. Lower {_field(recipe, name)}, or choose "
            f"a smaller architecture or data.image_size.{fewer}"
        )
    held, there = host_bytes(recipe, num_classes), memory_bytes()
    if held > there and not _READ_THE_SET.isdisjoint(ahead()):
        raise ResourceError(
            f"Sets and labels take {held / 1e9:.1f} GB beside the GPU; this machine has {there / 1e9:.1f} GB. "
            "Lower schedule.ipc, data.image_size or relabel.epochs_per_shard, or use a machine with more memory."
        )


def _field(recipe: Recipe, stage: str) -> str:
    """Return the setting that can make a stage need less, as messages name it."""
    matches = recipe.synthesis.objective == "mtt"
    fields = {
        "squeeze": "teacher.training.batch_size",
        "classify": "the number of tasks at once (CUDD_SLOTS)",
        "train_expert": "synthesis.mtt.expert_batch_size",
        "synthesize": "synthesis.mtt.batch_size or synthesis.mtt.steps" if matches else "synthesis.batch_size",
        "relabel": "relabel.epochs_per_shard or evaluation.training.batch_size",
        "train_student": "student.training.batch_size",
        "train_network": "evaluation.training.batch_size",
    }
    return fields[stage]


def _gpu_bytes() -> int:
    return min(int(torch.cuda.get_device_properties(i).total_memory) for i in range(torch.cuda.device_count()))
