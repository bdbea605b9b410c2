"""Checks that refuse, before anything is computed, what is bound to fail."""

from __future__ import annotations

import os
from contextlib import ExitStack

from torch import nn

from cudd_core.compute.ranks import Ranks
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data import open_split
from cudd_core.data.source import ImageSplit
from cudd_core.errors import ConfigError, DataError, ResourceError
from cudd_core.models.batchnorm import use_batch_statistics
from cudd_core.models.committee import Committee
from cudd_core.models.registry import build_network
from cudd_core.models.stateless import stateless
from cudd_core.models.synced_batchnorm import sync_batchnorm
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.stages.select import check_class_sizes
from flows.catalogue import STAGES, check_known
from flows.recipe import Recipe, methods, teacher_section
from tasks.context import DataRef
from tasks.runners import LOCAL, check_runner
from tasks.slots import most_processes, slot_count


def check_recipe(recipe: Recipe, force: frozenset[str], runner: str = LOCAL) -> None:
    """Check what needs no data: stages to force, device, runner.

    The device is checked only with the local runner, whose tasks compute on this machine.

    Raises:
        UserError: what is wrong, where, and what to do.
    """
    for name in sorted(force):
        check_known("--force-stages", name, STAGES)
    check_runner(runner)
    if runner == LOCAL:
        Runtime(recipe.compute)
    slot_count(recipe.compute)
    _check_processes(recipe, runner)


def _check_processes(recipe: Recipe, runner: str) -> None:
    """Check that every training can be shared by as many processes as asked for, and that they fit this machine."""
    compute, count = recipe.compute, recipe.compute.data_parallel
    if count == 1:
        return
    if runner != LOCAL:
        raise ConfigError(
            f"compute.data_parallel = {count}: the processes of a training need the local runner, which hands out "
            f"this machine's devices; --runner {runner} gives every task one. Leave one of the two out."
        )
    trainings = {"student": recipe.student.training, "evaluation": recipe.evaluation.training}
    trainings |= {
        teacher_section(number): teacher.training
        for number, teacher in enumerate(recipe.teachers)
        if teacher.source == "train"
    }
    for name, training in trainings.items():
        if training.batch_size < count:
            raise ConfigError(
                f"compute.data_parallel = {count}: {name}.training.batch_size = {training.batch_size} leaves processes "
                "without an image. Raise the one, or lower the other."
            )
    if count > (most := most_processes(compute)):
        limit = f" and CUDD_SLOTS = {os.environ['CUDD_SLOTS']}" if os.environ.get("CUDD_SLOTS") else ""
        there = (
            f"GPU{'s' * (count > 1)} of their own"
            if compute.device == "cuda"
            else f"{compute.threads} core{'s' * (compute.threads > 1)} each (compute.threads)"
        )
        raise ResourceError(
            f"compute.data_parallel = {count} processes need {there}; this machine{limit} has room for {most}. Set "
            f"compute.data_parallel={most}."
        )


def check_data(recipe: Recipe, distils: bool = True) -> DataRef:
    """Check the baselines, then open both splits and check class sizes and names, networks and image size against them.

    `distils`: whether the data needs as many images per class as the set will have.

    Raises:
        UserError: what is wrong, where, and what to do.
    """
    own, others = methods(recipe)
    synthesised = [method.synthesis for method in (own, *others.values()) if method.synthesis.enabled]
    train = open_split(recipe.data, recipe.data.train_split)
    if len(train.class_names) < 2:
        raise DataError(f"data: there is one class alone, {train.class_names[0]!r}. A classifier needs two or more.")
    if distils:
        check_class_sizes(train.labels, train.class_names, recipe.schedule.ipc)
    recipe.relabel.check_classes(len(train.class_names))
    test = open_split(recipe.data, recipe.data.test_split)
    if test.class_names != train.class_names:
        raise ConfigError(
            f"data: split {recipe.data.test_split!r} has the classes {_short(test.class_names)} but split "
            f"{recipe.data.train_split!r} has {_short(train.class_names)}. Both need the same, in the same order."
        )
    # If several sections have the same teacher architecture, messages name the first.
    sections = {teacher.arch: teacher_section(n) for n, teacher in reversed(list(enumerate(recipe.teachers)))}
    archs = {*sections, recipe.student.arch, *recipe.evaluation.archs} - {""}
    for arch in sorted(archs):
        network = build_network(arch, len(train.class_names), train.channels, train.image_size, seed=0)
        if arch in sections:
            name = f"{sections[arch]}.arch = {arch}"
            for synthesis in synthesised:
                _check_objective(synthesis, network, name, train)
            if recipe.relabel.batchnorm == "batch":
                use_batch_statistics(network, name)
        if recipe.compute.data_parallel > 1:
            sync_batchnorm(network, Ranks())
    return DataRef(recipe.data, train.digest, test.digest, len(train.class_names))


def _check_objective(synthesis: SynthesisConfig, teacher: nn.Module, name: str, train: ImageSplit) -> None:
    """Raise ModelError if a network lacks what the objective needs from it."""
    if synthesis.objective == "mtt":
        arch = synthesis.mtt.arch
        stateless(build_network(arch, len(train.class_names), train.channels, train.image_size, seed=0), arch)
    if not synthesis.minimises_eq_6:
        return
    with ExitStack() as stack:
        CuddObjective(Committee([teacher], [name]), None, synthesis, Runtime(ComputeConfig()), stack)


def _short(names: tuple[str, ...]) -> str:
    return f"{len(names)} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
