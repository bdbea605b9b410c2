"""Evaluate a set from a folder, ours or anyone's: the recipe's teacher labels it, fresh networks train on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import torch

from cudd_core.codec import content_digest
from cudd_core.data import open_split
from cudd_core.errors import ConfigError, DataError
from cudd_core.exchange import Imported, read_set
from cudd_core.records import Accuracy
from cudd_core.teacher import TeacherConfig
from flows.distill import baselines, measured_teacher, through
from flows.evaluation import compare_sets
from flows.prepare import opened_run
from flows.recipe import Recipe, methods
from flows.recipes import apply_overrides, find_recipe, stored_recipe
from flows.results import IMPORTED, Curriculum, Results
from flows.run import PipelineRun
from flows.summary import finish
from tasks.import_set import import_set
from tasks.measure import measure_set
from tasks.sets import assemble
from tasks.stage import fetch


@dataclass(frozen=True)
class ForeignSet:
    """A set in a folder and the recipe to evaluate it with, which gives teacher, labels, training and data."""

    folder: Path
    found: Imported
    recipe: Recipe
    digest: str


def open_foreign_set(folder: Path, recipe: str, overrides: list[str]) -> ForeignSet:
    """Read the set in `folder` and find its recipe: the one named, else the one that an export of ours carries.

    Raises:
        UserError: an unreadable set, no recipe, or classes, channels or sizes that differ from the recipe's data.
    """
    found = read_set(folder)
    refuse_what_the_set_decides(overrides)
    chosen = apply_overrides(_recipe(folder, found, recipe), overrides)
    check_fit(folder, found, chosen)
    images_per_class = torch.bincount(found.synthetic.labels, minlength=len(found.synthetic.class_names))
    if len(torch.unique(images_per_class)) != 1:
        raise DataError(
            f"{folder} has {int(images_per_class.min())} to {int(images_per_class.max())} images in a class. To stand "
            "beside random real images it needs the same number in each."
        )
    # The baseline of random images is as large as the set; others would have to be distilled.
    ipc = int(images_per_class[0])
    baselines = tuple(name for name in chosen.baselines if name == "random")
    train = open_split(chosen.data, chosen.data.train_split)
    fewest = int(torch.bincount(train.labels, minlength=len(train.class_names)).min())
    if baselines and ipc > fewest:
        raise ConfigError(
            f"{folder} has {ipc} images per class, but a class of the data has only {fewest}, so there cannot be as "
            "many random real images. Leave that baseline out: --set baselines="
        )
    changes = {
        "schedule": chosen.schedule.model_copy(update={"ipc": ipc, "kind": "logarithmic", "boundaries": ()}),
        "baselines": baselines,
        # Nothing is synthesised, so nobody has to have the memory for it, nor a teacher that suits it.
        "synthesis": chosen.synthesis.model_copy(update={"enabled": False}),
    }
    return ForeignSet(folder, found, chosen.model_copy(update=changes), content_digest(found.synthetic))


def refuse_what_the_set_decides(overrides: Sequence[str]) -> None:
    """Raise ConfigError for settings that would have no effect, since the set already exists with its size."""
    for text in overrides:
        key, _, value = text.partition("=")
        section = key.strip().partition(".")[0]
        if section in ("schedule", "select", "synthesis"):
            raise ConfigError(f"--set {text}: a set from a folder is not distilled again. Leave {key.strip()} out.")
        if section == "baselines" and not {name.strip() for name in value.strip("[] ").split(",")} <= {"random", ""}:
            raise ConfigError(
                f"--set {text}: beside a set from a folder there are random real images or nothing; other baselines "
                "would have to be distilled."
            )


def check_fit(folder: Path, found: Imported, recipe: Recipe) -> None:
    """Refuse a set whose classes, channels or size differ from the recipe's data; opens the training split.

    Raises:
        DataError: what differs.
    """
    synthetic = found.synthetic
    own, due = synthetic.class_names, open_split(recipe.data, recipe.data.train_split).class_names
    if len(own) != len(due):
        raise DataError(f"{folder} has {len(own)} classes, but the data of recipe {recipe.name} has {len(due)}.")
    if found.named and own != due:
        first = next(k for k, names in enumerate(zip(own, due, strict=True)) if names[0] != names[1])
        problem = "the same classes in another order" if sorted(own) == sorted(due) else "other classes"
        raise DataError(
            f"{folder} has {problem} than the data of recipe {recipe.name}: class {first} is {own[first]!r} there and "
            f"{due[first]!r} here. Labels would mean other things to the teacher: rename or renumber its folders."
        )
    _, channels, size, _ = synthetic.images.shape
    if (channels, size) != (recipe.data.channels, recipe.data.image_size):
        raise DataError(
            f"{folder} has images of {channels} channels and {size} px, but recipe {recipe.name} has data.channels = "
            f"{recipe.data.channels} and data.image_size = {recipe.data.image_size}. Its teacher needs these: convert "
            "the images, or choose a recipe for their size."
        )


def evaluate_foreign_set(foreign: ForeignSet) -> dict[str, Any]:
    """Run teacher, labels, evaluation and report; the imported set is the one curriculum. Call this inside a flow."""
    recipe = foreign.recipe
    stages = partial(_stages, foreign=foreign)
    imported = {"format": foreign.found.format, "digest": foreign.digest, "folder": str(foreign.folder)}

    def finished(run: PipelineRun) -> dict[str, Any]:
        results = stages(run)
        assert results.agreement is not None
        share = fetch(run.context, results.agreement, Accuracy).accuracy
        return finish(run, recipe, results, {IMPORTED: {**imported, "teacher_agreement": share}})

    # `beginning` marks the run as an evaluation, so that no other command takes it for a distillation.
    with opened_run(recipe, stages, job="evaluate", beginning={IMPORTED: imported}) as run:
        return through(run, lambda: finished(run))


def _stages(run: PipelineRun, foreign: ForeignSet) -> Results:
    recipe = foreign.recipe
    teacher = measured_teacher(run, recipe)
    manifest = foreign.found.manifest
    same_data = manifest is not None and manifest.origin.train_data == run.context.data.train
    with run.round("imported set", {"method": IMPORTED, "format": foreign.found.format}) as current:
        parts = sorted(set(foreign.found.synthetic.curricula.tolist()))
        submitted = [run.submit(import_set, str(foreign.folder), foreign.digest, part, same_data) for part in parts]
        shards = run.gather("import", submitted, current)
    (dataset,) = run.gather("assemble", [run.submit(assemble, shards)])
    # Before anything that takes hours, check that the set's classes mean the same as the teacher's.
    (agreement,) = run.gather("measure", [run.submit(measure_set, teacher.network, shards)])
    _, others = methods(recipe)
    sets = {"distilled": shards, **baselines(run, recipe, others, teacher)}
    shown = Curriculum(1, recipe.schedule.ipc, (), shards, None, current)
    compared = compare_sets(run, recipe, teacher, sets)
    return Results(
        **vars(compared), teacher=teacher, curricula=(shown,), dataset=dataset, students={}, agreement=agreement
    )


def _recipe(folder: Path, found: Imported, name: str) -> Recipe:
    if name:
        return find_recipe(name)
    if found.manifest is None or not found.manifest.origin.config:
        raise ConfigError(f"{folder} does not say what it was distilled from. Add --recipe RECIPE.")
    recipe = stored_recipe(found.manifest.origin.config, str(folder))
    # Our exports name no paths. Somebody else's must not choose what is read, or downloaded to where, on this machine.
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"root": ""}),
            "teacher": _without_path(recipe.teacher),
            "other_teachers": tuple(map(_without_path, recipe.other_teachers)),
        }
    )


def _without_path(teacher: TeacherConfig) -> TeacherConfig:
    return teacher.model_copy(update={"weights": PurePath(teacher.weights).name})
