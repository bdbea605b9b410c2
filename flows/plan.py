"""What a recipe will do, worked out without running it: tasks, images, bytes, FLOPs, and hours on a given device.

FLOPs are counted by one forward pass of each network (`flows.flops`). A backward pass through weights and activations
costs two forward passes, one through activations alone (synthesis, where only pixels are learned) costs one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import get_args

from cudd_core.baselines import Method
from cudd_core.data import open_split
from cudd_core.data.label_forms import Storage
from cudd_core.data.replay import batch_bounds
from cudd_core.errors import ConfigError
from cudd_core.objectives.batches import batch_positions
from cudd_core.objectives.configuration import MttConfig, SynthesisConfig
from cudd_core.prediction import PREDICTED_TOGETHER
from cudd_core.schedule import ScheduleConfig, curriculum_boundaries, cut
from cudd_core.training import TrainingConfig
from flows.catalogue import DATASETS, STAGES, did_you_mean
from flows.flops import forward_flops
from flows.memory import host_bytes, stage_memory
from flows.quantities import in_bytes
from flows.rates import Device, device_of
from flows.recipe import Recipe, methods

_STORAGES = get_args(Storage)


@dataclass(frozen=True)
class StagePlan:
    """One stage of a whole run: its Prefect tasks, optimisation or forward steps, and FLOPs."""

    name: str
    tasks: int = 0
    steps: float = 0
    flops: float = 0

    def hours(self, device: Device) -> float:
        """Return the expected hours on a device."""
        parallel = min(device.tasks, max(1, self.tasks))
        return (self.flops / device.flops * device.tasks + self.steps * device.step) / parallel / 3600


@dataclass(frozen=True)
class LabelBytes:
    """Bytes of a run's labels in one form: those for the distilled set's evaluation, and all that are stored."""

    storage: Storage
    of_set: int
    in_all: int


@dataclass(frozen=True)
class Plan:
    """What `plan` found. `device`: the one hours are estimated for. Bytes are pixels and labels, without file headers.

    `labels`: as this recipe stores them; `label_forms`: as each form would store them, with the recipe's
    `relabel.reuse`; `full_labels`: float16 without reuse. `decoded_bytes`: of both splits, in the folder of decoded
    images, if there is room; 0 if that folder is not used. `memory`: the most bytes that one task of a stage needs on
    its device, besides the process (`flows.memory`); `at_once`: tasks that are on one device at the same time;
    `host_memory`: what reading the whole set takes beside a GPU, 0 on a CPU.
    """

    recipe: str
    dataset: str
    num_classes: int
    num_train: int
    boundaries: tuple[int, ...]
    blocks: int
    stages: tuple[StagePlan, ...]
    images: int
    image_bytes: int
    labels: LabelBytes
    label_forms: tuple[LabelBytes, ...]
    full_labels: LabelBytes
    reuse: int
    decoded_bytes: int
    forward_flops: dict[str, int]
    device: Device
    memory: dict[str, int]
    at_once: int
    host_memory: int
    notes: tuple[str, ...] = field(default=())

    @property
    def tasks(self) -> int:
        """Total number of tasks."""
        return sum(stage.tasks for stage in self.stages)

    @property
    def flops(self) -> float:
        """Total FLOPs."""
        return sum(stage.flops for stage in self.stages)

    @property
    def hours(self) -> float:
        """Total expected hours."""
        return sum(stage.hours(self.device) for stage in self.stages)


def plan(
    recipe: Recipe, num_classes: int | None = None, num_train: int | None = None, *, device: str | None = None
) -> Plan:
    """Return what a run of `recipe` will do.

    Args:
        recipe: a complete recipe.
        num_classes: classes of the data; None: known from `recipe.dataset`, or read from the data.
        num_train: training images; None: known from `recipe.dataset`, or read from the data.
        device: a name in `DEVICES`; None: two CPU cores or one H100, by `recipe.compute.device`.

    Raises:
        ConfigError: a data set of unknown size, an unknown device, a synthetic set larger than the data.
        ModelError: an unknown architecture, or one that does not take images of this size.
    """
    classes, train, test = _sizes(recipe, num_classes, num_train)
    rates = device_of(recipe, device)
    ipc, size, channels = recipe.schedule.ipc, recipe.data.image_size, recipe.data.channels
    if ipc * classes > train:
        raise ConfigError(
            f"schedule.ipc = {ipc} asks for {ipc * classes:,} images of {classes:,} classes, but the training split "
            f"has only {train:,}. Set schedule.ipc to at most {train // classes}."
        )
    recipe.relabel.check_classes(classes)
    archs, student_arch = recipe.evaluation_archs, recipe.student_arch
    synthesis = recipe.synthesis
    experts = (synthesis.mtt.arch,) if synthesis.matches_trajectories else ()
    teachers = (teacher.arch for teacher in recipe.teachers)
    forward = {
        arch: forward_flops(arch, classes, channels, size) for arch in {*teachers, student_arch, *archs, *experts}
    }
    walk = _Costs(recipe, classes, train, test, forward)
    walk.obtain_teacher()
    own, others = methods(recipe)
    walk.curricula(own)
    for taught, training in students(recipe, classes):
        walk.relabel(taught, training)
        walk.train_networks("train_student", taught, training, walk.student, 1)
    walk.add("assemble", 1)
    walk.measure(walk.counts["train_student"].tasks, walk.student)
    walk.evaluate(ipc * classes, archs)
    for name in recipe.baselines:
        if name == "selection":
            kept = sum(len(shards) for shards in walk.shards(recipe.schedule))
            walk.add("keep", kept * len(walk.blocks))
        else:
            walk.curricula(others[name])
        walk.evaluate(ipc * classes, archs)
    walk.add("report", 1)

    images = ipc * classes
    allowed = [form for form in _STORAGES if recipe.relabel.top <= classes or not form.startswith("topk")]
    labels = label_bytes(recipe, classes)
    return Plan(
        recipe=recipe.name,
        dataset=recipe.dataset or "your data",
        num_classes=classes,
        num_train=train,
        boundaries=curriculum_boundaries(recipe.schedule),
        blocks=len(walk.blocks),
        stages=tuple(stage for stage in walk.counts.values() if stage.tasks),
        images=images,
        image_bytes=images * channels * size * size,
        labels=labels,
        label_forms=tuple(label_bytes(_storing(recipe, storage=form), classes) for form in allowed),
        full_labels=label_bytes(_storing(recipe, storage="full", reuse=1), classes),
        reuse=recipe.relabel.reuse,
        decoded_bytes=(train + test) * channels * size * size if recipe.data.keeps_decoded else 0,
        forward_flops=dict(sorted(forward.items())),
        device=rates,
        memory=stage_memory(recipe, classes),
        at_once=recipe.compute.lanes if recipe.compute.device == "cuda" else rates.tasks,
        host_memory=host_bytes(recipe, classes),
        notes=_notes(recipe, labels.of_set),
    )


def students(recipe: Recipe, classes: int) -> list[tuple[int, TrainingConfig]]:
    """Return how many images each student of a run is taught, and its training. Baselines have no students."""
    own, _ = methods(recipe)
    boundaries = curriculum_boundaries(own.schedule)
    return [
        (last * classes, recipe.student.training_of(number))
        for number, last in enumerate(boundaries, start=1)
        if recipe.student.train_last or (own.uses_students and last < boundaries[-1])
    ]


def label_bytes(recipe: Recipe, classes: int) -> LabelBytes:
    """Return the bytes of a run's soft labels: of all sets for the evaluation, if it uses them, and of all students."""

    def stored(images: int, training: TrainingConfig) -> int:
        return recipe.relabel.stored_bytes(classes, images, training.epochs, training.batch_size)

    evaluation = recipe.evaluation
    of_set = stored(recipe.schedule.ipc * classes, evaluation.training) if evaluation.labels == "soft" else 0
    of_students = sum(stored(*each) for each in students(recipe, classes))
    return LabelBytes(recipe.relabel.storage, of_set, (1 + len(recipe.baselines)) * of_set + of_students)


def _storing(recipe: Recipe, **changes: object) -> Recipe:
    """Return the recipe with labels stored in another way."""
    return recipe.model_copy(update={"relabel": recipe.relabel.model_copy(update=changes)})


class _Costs:
    """Walks through a run as `flows.distill` does, counting instead of computing."""

    def __init__(self, recipe: Recipe, classes: int, train: int, test: int, forward: dict[str, int]) -> None:
        self.recipe, self.classes, self.train, self.test = recipe, classes, train, test
        self.forward, self.teacher = forward, forward[recipe.teacher.arch]
        self.teachers = sum(forward[teacher.arch] for teacher in recipe.teachers)
        self.student = forward[recipe.student_arch]
        self.blocks = cut(range(classes), recipe.schedule.block_size)
        self.counts = {name: StagePlan(name) for name in STAGES}

    def add(self, stage: str, tasks: int, flops: float = 0, steps: float = 0) -> None:
        old = self.counts[stage]
        self.counts[stage] = StagePlan(stage, old.tasks + tasks, old.steps + steps, old.flops + flops)

    def shards(self, schedule: ScheduleConfig) -> list[tuple[range, ...]]:
        """Return the shards of each curriculum."""
        boundaries = curriculum_boundaries(schedule)
        return [cut(range(a, b), schedule.slices_per_shard) for a, b in pairwise((0, *boundaries))]

    def obtain_teacher(self) -> None:
        """Count all teachers; only the first is asked about the training data."""
        for config in self.recipe.teachers:
            forward = self.forward[config.arch]
            if config.source == "train":
                epochs, batch = config.training.epochs, min(config.training.batch_size, self.train)
                self.add("squeeze", 1, epochs * self.train * 3 * forward, epochs * (self.train // batch))
            else:
                self.add("squeeze", 1)
            self.add("preflight", 1, self.test * forward, self.test / PREDICTED_TOGETHER)
        self.classify(self.teacher)

    def classify(self, network: int) -> None:
        self.add("classify", len(self.blocks), self.train * network, self.train / PREDICTED_TOGETHER)

    def curricula(self, method: Method) -> None:
        """Count the selections and images of all curricula, without their students."""
        boundaries = curriculum_boundaries(method.schedule)
        jointly = method.synthesis.matches_trajectories
        if jointly:
            self.train_experts(method.synthesis.mtt)
        for number, (last, shards) in enumerate(zip(boundaries, self.shards(method.schedule), strict=True), start=1):
            if number > 1 and method.select.asks_student:
                self.classify(self.student)
            if method.select.geometric:
                self.add("features", len(self.blocks), self.train * self.teacher, self.train / PREDICTED_TOGETHER)
            self.add("select", len(self.blocks))
            if method.synthesis.uses_pool_statistics:  # an upper bound: the pool is a part of the training split
                count = len(self.recipe.teachers)
                steps = count * self.train / PREDICTED_TOGETHER
                self.add("statistics", count, self.train * self.teachers, steps)
            if jointly:
                self.match_trajectories(method.synthesis.in_curriculum(number), last * self.classes)
            for block in self.blocks if not jointly else ():
                for shard in shards:
                    self.synthesize(
                        method.synthesis.in_curriculum(number), len(shard), len(block), with_student=number > 1
                    )

    def synthesize(self, config: SynthesisConfig, slices: int, classes: int, with_student: bool) -> None:
        """Count passes forward, and backward to the pixels, through the teachers and, if L_adv is on, the student."""
        if not config.enabled:
            self.add("keep", 1)
            return
        passes = 2 * self.teachers
        if with_student and config.weight_adv > 0:
            passes += 2 * self.student
        if config.regularization == "feature" and config.weight_reg > 0:
            passes += self.teachers
        if config.init == "patches":
            views = slices * classes * config.patch_grid**2 * config.patch_candidates
            self.add("synthesize", 0, views * self.teachers, views / PREDICTED_TOGETHER)
        batches = sum(1 for _ in batch_positions(slices, classes, config.batch_size))
        self.add("synthesize", 1, slices * classes * config.iterations * passes, batches * config.iterations)

    def train_experts(self, config: MttConfig) -> None:
        steps = config.expert_epochs * (self.train // min(config.expert_batch_size, self.train))
        flops = config.expert_epochs * self.train * 3 * self.forward[config.arch]
        self.add("train_expert", config.experts, config.experts * flops, config.experts * steps)

    def match_trajectories(self, config: SynthesisConfig, images: int) -> None:
        """Count one task per curriculum. A step goes forward and backward; going back through both costs twice that."""
        mtt = config.mtt
        steps = config.iterations * mtt.steps
        each = min(mtt.batch_size or images, images)
        self.add("synthesize", 1, steps * each * 9 * self.forward[mtt.arch], 3 * steps)

    def relabel(self, images: int, training: TrainingConfig) -> None:
        """Count the labelling of a set for a training."""
        relabel = self.recipe.relabel
        if relabel.storage == "none":
            return
        epochs = relabel.distinct_epochs(training.epochs)
        steps = epochs * len(batch_bounds(images, training.batch_size))
        self.add("relabel", len(relabel.shards(training.epochs)), epochs * images * self.teachers, steps)

    def train_networks(self, stage: str, images: int, training: TrainingConfig, network: int, count: int) -> None:
        steps = training.epochs * len(batch_bounds(images, training.batch_size))
        answers = self.teachers if self.recipe.relabel.storage == "none" else 0
        self.add(stage, count, count * training.epochs * images * (3 * network + answers), count * steps)

    def measure(self, networks: int, forward: int) -> None:
        tests = networks * self.test
        self.add("measure", networks, tests * forward, tests / PREDICTED_TOGETHER)

    def evaluate(self, images: int, archs: tuple[str, ...]) -> None:
        """Count the labels and fresh networks of one set."""
        config = self.recipe.evaluation
        if config.labels == "soft":
            self.relabel(images, config.training)
        for arch in archs:
            self.train_networks("train_network", images, config.training, self.forward[arch], config.seeds)
            self.measure(config.seeds, self.forward[arch])


def _sizes(recipe: Recipe, num_classes: int | None, num_train: int | None) -> tuple[int, int, int]:
    known = DATASETS.get(recipe.dataset)
    if known is None and num_classes is None and num_train is None and recipe.data.root:
        own = open_split(recipe.data, recipe.data.train_split)
        return len(own.class_names), len(own), len(open_split(recipe.data, recipe.data.test_split))
    if known is None and (num_classes is None or num_train is None):
        near = did_you_mean(recipe.dataset, DATASETS) if recipe.dataset else ""
        raise ConfigError(
            f"The size of the data set {recipe.dataset!r} is not known.{near} Give its number of classes and of "
            f"training images (--classes, --images), or set dataset to one of {', '.join(DATASETS)}."
        )
    classes, train, test = known or (0, 0, 0)
    classes = num_classes if num_classes is not None else classes
    train = num_train if num_train is not None else train
    for name, value in (("classes", classes), ("images", train)):
        if value < 1:
            raise ConfigError(f"--{name} {value} must be at least 1.")
    if recipe.data.limit_per_class:
        train, test = (min(n, classes * recipe.data.limit_per_class) for n in (train, test))
    return classes, train, test


def _notes(recipe: Recipe, label_bytes: int) -> tuple[str, ...]:
    notes = []
    if recipe.compute.device == "cuda" and recipe.compute.lanes > 1:
        notes.append(
            f"Time is that of one task at a time on each GPU; compute.lanes = {recipe.compute.lanes} is not in it. "
            "Three small trainings at a time took 0.6 of it."
        )
    if recipe.compute.data_parallel > 1:
        notes.append(
            f"Hours are those of trainings by one process: compute.data_parallel = {recipe.compute.data_parallel} "
            "is not in them. Memory is that of one of its processes."
        )
    if recipe.compute.device == "cpu" and any(each.threads > recipe.compute.threads for each in recipe.teachers):
        notes.append("Time is that of one thread a task: teacher.threads is not in it.")
    if recipe.synthesis.matches_trajectories:
        notes.append(
            "Trajectory matching optimises all images of a curriculum together: one synthesis task a curriculum, "
            "however many devices there are. Experts are a task each."
        )
    if label_bytes > 100e9:
        notes.append(
            f"The soft labels of one evaluated set take {in_bytes(label_bytes)}; set relabel.storage or relabel.reuse, "
            "lower evaluation.training.epochs, or plan the storage."
        )
    epochs = recipe.evaluation.training.epochs
    most = max(map(len, recipe.relabel.shards(epochs)))
    shard = label_bytes * most / recipe.relabel.distinct_epochs(epochs)
    if shard > 8e9:
        lower = f"relabel.epochs_per_shard = {recipe.relabel.epochs_per_shard} can be lowered"
        remedy = lower if most > 1 else "relabel.storage has smaller forms"
        notes.append(f"One relabel task holds {in_bytes(shard)} of labels; {remedy}.")
    return tuple(notes)
