"""What a comparison measures for one variant, and how the measurements become a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cudd_core.comparison import DISTILLED, HARD, OWN, PLAIN, Cell
from cudd_core.image_table import IMAGE_FILE
from cudd_core.manifest import read_manifest
from cudd_core.records import Accuracy
from cudd_core.reporting.comparison import Made
from cudd_core.schedule import curriculum_boundaries
from flows.distill import pipeline
from flows.evaluation import compare_sets
from flows.recipe import Recipe
from flows.results import Compared, Results
from flows.run import PipelineRun
from flows.summary import finish
from flows.variants import Variant
from tasks.caching import fetch_input_folder
from tasks.context import StageContext
from tasks.measure import measure_network
from tasks.refs import Ref
from tasks.squeeze import squeeze
from tasks.stage import fetch

STAGE_GROUPS = {
    "classify": "classify",
    "features": "classify",
    "select": "select",
    "statistics": "synthesize",
    "synthesize": "synthesize",
    "keep": "synthesize",
    "relabel": "student labels",
    "train_student": "students",
}
"""Stages of a curriculum → the groups in which Table XI sums them up."""


@dataclass(frozen=True)
class Measured:
    """One set with one architecture and protocol: its networks' accuracies, and the keys of these measurements."""

    method: str
    arch: str
    protocol: str
    values: tuple[float, ...]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Distillation:
    """Everything measured for one recipe. `work`: method → group of stages → MLflow runs of the stages."""

    summary: Mapping[str, Any]
    measured: tuple[Measured, ...]
    full_data: Mapping[str, float]
    image_bytes: Mapping[str, int]
    label_bytes: Mapping[tuple[str, str], int]
    work: Mapping[str, Mapping[str, tuple[str, ...]]]
    reused: int
    computed: int


def ranking_protocols(recipe: Recipe) -> dict[str, Recipe]:
    """Return protocol → recipe to evaluate sets by: the two variations that DD-Ranking's scores need."""
    hard = recipe.evaluation.model_copy(update={"labels": "hard"})
    # A crop of the whole area has the ratio 1 or does not fit: either way, the image stays as it is.
    plain = recipe.relabel.model_copy(update={"crop_scale": (1.0, 1.0), "flip": False, "mix": "none"})
    return {
        HARD: recipe.model_copy(update={"evaluation": hard}),
        PLAIN: recipe.model_copy(update={"relabel": plain}),
    }


def by_protocol(run: PipelineRun, recipe: Recipe, results: Results, ranking: bool) -> dict[str, Compared]:
    """Evaluate a run's sets under the other protocols too; return protocol → what came out."""
    others = ranking_protocols(recipe) if ranking else {}
    compared = {name: compare_sets(run, other, results.teacher, results.sets) for name, other in others.items()}
    return {OWN: results, **compared}


def all_stages(run: PipelineRun, recipe: Recipe, ranking: bool) -> Results:
    """Go through what `distil_and_measure` does with the sets of a recipe, for a walk, which reads no accuracies."""
    results = pipeline(run, recipe)
    by_protocol(run, recipe, results, ranking)
    return results


def distil_and_measure(run: PipelineRun, recipe: Recipe, ranking: bool, full_data: bool) -> Distillation:
    """Run the pipeline, then evaluate its sets under the other protocols too. Call this inside a flow."""
    results = pipeline(run, recipe)
    summary = finish(run, recipe, results)
    measured: list[Measured] = []
    label_bytes: dict[tuple[str, str], int] = {}
    for protocol, compared in by_protocol(run, recipe, results, ranking).items():
        for method, by_arch in compared.evaluations.items():
            label_bytes[method, protocol] = sum(ref.bytes for ref in compared.labels[method])
            for arch, refs in by_arch.items():
                values = tuple(fetch(run.context, ref, Accuracy).accuracy for ref in refs)
                measured.append(Measured(method, arch, protocol, values, tuple(ref.key for ref in refs)))
    return Distillation(
        summary=summary,
        measured=tuple(measured),
        full_data=_full_data(run, recipe, results, full_data),
        image_bytes={method: _image_bytes(run.context, shards) for method, shards in results.sets.items()},
        label_bytes=label_bytes,
        work={method: _work_of(run, results, method) for method in results.sets},
        reused=run.tally.reused,
        computed=run.tally.computed,
    )


def _work_of(run: PipelineRun, results: Results, method: str) -> dict[str, tuple[str, ...]]:
    """Return the MLflow runs of the stages that made and evaluated a set, by group.

    `selection` has the originals of CUDD's curricula.
    """
    own = "curriculum" if method in (DISTILLED, "selection") else method
    groups: dict[str, dict[str, None]] = {group: {} for group in dict.fromkeys(STAGE_GROUPS.values())}
    for each in run.tally.rounds:
        if each.name.rpartition(" ")[0] == own:
            for ref in each.refs:
                groups[STAGE_GROUPS[ref.stage]][ref.run_id] = None
    made = {group: tuple(found) for group, found in groups.items() if found}
    networks = (results.networks[method], results.evaluations[method])
    evaluated = tuple(ref.run_id for by_arch in networks for refs in by_arch.values() for ref in refs)
    return {**made, "labels": tuple(ref.run_id for ref in results.labels[method]), "evaluation": evaluated}


def _full_data(run: PipelineRun, recipe: Recipe, results: Results, others: bool) -> dict[str, float]:
    """Return the test accuracy, by architecture, of networks trained on all of the data: the teacher and maybe others.

    `others`: also train the evaluation's other architectures, as `teacher.training` says, even if the teacher itself
    was loaded.
    """
    found = {recipe.teacher.arch: fetch(run.context, results.teacher.accuracy, Accuracy).accuracy}
    archs = [arch for arch in recipe.evaluation.archs if arch not in found] if others else []
    configs = [recipe.teacher.model_copy(update={"source": "train", "arch": arch}) for arch in archs]
    networks = run.gather("squeeze", [run.submit(squeeze, config) for config in configs])
    submitted = [
        run.submit(measure_network, network, f"{arch} on all data")
        for arch, network in zip(archs, networks, strict=True)
    ]
    for arch, ref in zip(archs, run.gather("measure", submitted), strict=True):
        found[arch] = fetch(run.context, ref, Accuracy).accuracy
    return found


def _image_bytes(context: StageContext, shards: Sequence[Ref]) -> int:
    """Return the bytes of the losslessly compressed images alone, without previews and records."""
    manifests = [read_manifest(fetch_input_folder(context.store, ref)) for ref in shards]
    return sum(file.bytes for manifest in manifests for file in manifest.files if file.path == IMAGE_FILE)


# ---- the table ------------------------------------------------------------------------------------------------------


Seconds = Mapping[str, float | None]
"""MLflow run of a stage → how long its work took when it was computed; None if that was not measured."""


def cells_of(variant: Variant, distillations: Sequence[Distillation], took: Seconds) -> list[Cell]:
    """Return a variant's cells: with one value per network or, if there are several distillations, one for each."""
    found: list[Cell] = []
    first = distillations[0]
    for which in first.measured:
        same = [next(m for m in each.measured if _same(m, which)) for each in distillations]
        values = same[0].values if len(same) == 1 else tuple(statistics.fmean(m.values) for m in same)
        full = [each.full_data[which.arch] for each in distillations if which.arch in each.full_data]
        times = [set_seconds(stage_seconds(each, which.method, took)) for each in distillations]
        known = [seconds for seconds in times if seconds is not None]
        found.append(
            Cell(
                recipe=variant.recipes[0].name,
                variant=variant.label,
                method=which.method,
                arch=which.arch,
                protocol=which.protocol,
                ipc=variant.recipes[0].schedule.ipc,
                values=values,
                networks=sum(len(m.values) for m in same),
                teacher=statistics.fmean(each.summary["accuracy"]["teacher"] for each in distillations),
                full_data=statistics.fmean(full) if full else None,
                image_bytes=first.image_bytes[which.method],
                label_bytes=first.label_bytes[which.method, which.protocol],
                seconds=statistics.fmean(known) if len(known) == len(times) else None,
                identity=tuple(key for m in same for key in m.keys),
            )
        )
    return found


def _same(one: Measured, other: Measured) -> bool:
    return (one.method, one.arch, one.protocol) == (other.method, other.arch, other.protocol)


def stage_seconds(distillation: Distillation, method: str, took: Seconds) -> dict[str, float] | None:
    """Return the seconds that a set's stages took when they were computed, by group; None unless all are known."""
    found = {}
    for group, runs in distillation.work[method].items():
        seconds = [took.get(run) for run in runs]
        if any(value is None for value in seconds):
            return None
        found[group] = sum(value for value in seconds if value is not None)
    return found


def set_seconds(by_group: Mapping[str, float] | None) -> float | None:
    """Return the seconds that a set took, without its labels and evaluation; None if not known."""
    if by_group is None:
        return None
    return sum(seconds for group, seconds in by_group.items() if group not in ("labels", "evaluation"))


def made_of(variant: Variant, distillations: Sequence[Distillation], took: Seconds) -> Made:
    """Return what the report says about a variant besides its accuracies."""
    first = distillations[0]
    costs = {method: stage_seconds(first, method, took) for method in first.work}
    accuracies = {each["index"]: each["student_accuracy"] for each in first.summary["curricula"]}
    return Made(
        recipe=variant.recipes[0].name,
        variant=variant.label,
        boundaries=curriculum_boundaries(variant.recipes[0].schedule),
        seeds=tuple(recipe.seed for recipe in variant.recipes),
        digests=tuple(each.summary["dataset"]["digest"] for each in distillations),
        runs=tuple(each.summary["mlflow_run_id"] for each in distillations),
        students={j: accuracy for j, accuracy in accuracies.items() if accuracy is not None},
        seconds={method: seconds for method, seconds in costs.items() if seconds is not None},
    )
