"""Robustness to corruptions (Fig. 4): the networks of a run, and its teacher, on corrupted test images."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from prefect import flow
from pydantic import Field, WithJsonSchema

from cudd_core.data.corruptions import CORRUPTIONS, SEVERITIES, applicable, benchmark_of
from cudd_core.errors import ConfigError
from cudd_core.records import Accuracies, Accuracy
from cudd_core.reporting.robustness import robustness_figure
from cudd_core.reporting.tables import Table, shown, summary_of
from cudd_core.reporting.theme import png_bytes
from flows.cancel import keep_cancelled
from flows.catalogue import check_known
from flows.distill import RUNNER
from flows.laboratory import Findings, laboratory
from flows.recipe import Recipe
from flows.results import Results
from flows.run import PipelineRun
from tasks.laboratory import measure_corrupted
from tasks.stage import fetch

# What a deployment's form in Prefect offers and refuses; its descriptions are taken from the docstring's `Args`.
_CORRUPTIONS = {
    "type": "array",
    "items": {"type": "string", "enum": list(CORRUPTIONS)},
}
_SEVERITIES = {
    "type": "array",
    "items": {"type": "integer", "minimum": min(SEVERITIES), "maximum": max(SEVERITIES)},
}
_SEEDS = {
    "anyOf": [{"title": "number", "type": "integer"}, {"title": "the run's", "type": "null"}],
    "minimum": 1,
    "maximum": 100,
}


@flow(name="robustness", flow_run_name="robustness {run}", task_runner=RUNNER, on_failure=[keep_cancelled])
def robustness(
    run: str,
    corruptions: Annotated[list[str], WithJsonSchema(_CORRUPTIONS)] = [],  # noqa: B006
    severities: Annotated[list[int], WithJsonSchema(_SEVERITIES)] = list(SEVERITIES),  # noqa: B006
    seeds: Annotated[int | None, Field(ge=1, le=100), WithJsonSchema(_SEEDS)] = None,
) -> dict[str, Any]:
    """Measure the networks of a run's sets and its teacher under the corruptions of ImageNet-C.

    Args:
        run: MLflow run id of a distillation, or its folder.
        corruptions: Corruptions to apply. Empty: all that the images can have.
        severities: Severities to apply, from 1 (weak) to 5 (strong).
        seeds: Networks per set. Empty: the run's own number.
    """

    def change(recipe: Recipe) -> Recipe:
        check_corruptions(corruptions, recipe.data.channels)
        check_severities(severities)
        count = seeds or recipe.evaluation.seeds
        return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"seeds": count})})

    def study(opened: PipelineRun, recipe: Recipe, results: Results) -> Findings:
        names = tuple(dict.fromkeys(corruptions)) or applicable(recipe.data.channels)
        return find(opened, recipe, results, names, tuple(sorted(set(severities))))

    return laboratory("robustness", run, change, study)


def check_corruptions(names: list[str], channels: int) -> None:
    """Raise ConfigError for a corruption that does not exist, or that greyscale images cannot have."""
    for name in names:
        check_known("--corruptions", name, CORRUPTIONS)
        if name not in applicable(channels):
            raise ConfigError(f"--corruptions {name}: greyscale images have no colour to change. Leave it out.")


def check_severities(severities: list[int]) -> None:
    """Raise ConfigError unless there is at least one severity and all are from 1 to 5."""
    if not severities or not set(severities) <= set(SEVERITIES):
        raise ConfigError(f"--severities {severities}: give some of 1 to 5, for example 1-5 or 1,3,5.")


Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Accuracies on clean images [networks] and on corrupted ones [networks, corruptions, severities]."""


def find(
    opened: PipelineRun, recipe: Recipe, results: Results, names: tuple[str, ...], severities: tuple[int, ...]
) -> Findings:
    """Measure all networks together on each corrupted test split, one task per corruption and severity."""
    owners = [
        (method, arch, ref)
        for method, by_arch in results.networks.items()
        for arch, refs in by_arch.items()
        for ref in refs
    ]
    networks = (results.teacher.network, *(ref for _, _, ref in owners))
    wanted = [(name, severity) for name in names for severity in severities]
    submitted = [opened.submit(measure_corrupted, networks, name, severity) for name, severity in wanted]
    measured = opened.gather("measure_corrupted", submitted)
    # [networks, corruptions, severities], the teacher first.
    values = np.stack([fetch(opened.context, ref, Accuracies).values.numpy() for ref in measured], axis=1)
    values = values.reshape(len(networks), len(names), len(severities))
    sets: dict[str, dict[str, Pair]] = {}
    for method, by_arch in results.evaluations.items():
        for arch, refs in by_arch.items():
            clean = np.array([fetch(opened.context, ref, Accuracy).accuracy for ref in refs])
            rows = [row for row, owner in enumerate(owners, start=1) if owner[:2] == (method, arch)]
            sets.setdefault(method, {})[arch] = (clean, values[rows])
    teacher = fetch(opened.context, results.teacher.accuracy, Accuracy)
    of_teacher = (np.array([teacher.accuracy]), values[:1])
    archs = dict.fromkeys(arch for by_arch in sets.values() for arch in by_arch)
    beside = {arch: {**{method: sets[method][arch] for method in sets}, "teacher": of_teacher} for arch in archs}
    benchmark = benchmark_of(recipe.data.image_size)
    return Findings(
        title=f"{recipe.name}: robustness to corruptions",
        document={
            "recipe": recipe.name,
            "seed": recipe.seed,
            "constants": benchmark,
            "images": teacher.n,
            "corruptions": list(names),
            "severities": list(severities),
            "accuracy": {
                "teacher": _document(*of_teacher, names, severities),
                **{
                    method: {arch: _document(*pair, names, severities) for arch, pair in by_arch.items()}
                    for method, by_arch in sets.items()
                },
            },
        },
        tables={
            title: table
            for arch, by_method in beside.items()
            for title, table in _tables(arch, by_method, names, severities).items()
        },
        rows=_rows({"teacher": {recipe.teacher.arch: of_teacher}, **sets}, names, severities),
        figures={
            f"robustness-{arch.replace('/', '-')}": png_bytes(
                robustness_figure(by_method, names, severities, f"{recipe.name}, {arch}: constants of {benchmark}")
            )
            for arch, by_method in beside.items()
        },
    )


def _document(
    clean: NDArray[np.float64], corrupted: NDArray[np.float64], names: tuple[str, ...], severities: tuple[int, ...]
) -> dict[str, Any]:
    return {
        "clean": summary_of(clean.tolist()),
        "mean": summary_of(corrupted.mean(axis=(1, 2)).tolist()),
        "by_corruption": {name: summary_of(corrupted[:, c].mean(axis=1).tolist()) for c, name in enumerate(names)},
        "by_severity": {str(level): summary_of(corrupted[:, :, s].mean(axis=1).tolist())
                        for s, level in enumerate(severities)},
        "by_corruption_and_severity": {
            name: {str(level): summary_of(corrupted[:, c, s].tolist()) for s, level in enumerate(severities)}
            for c, name in enumerate(names)
        },
    }  # fmt: skip


def _tables(
    arch: str, by_method: dict[str, Pair], names: tuple[str, ...], severities: tuple[int, ...]
) -> dict[str, Table]:
    """Return two tables, in per cent, mean ± standard deviation over networks: by severity, and by corruption."""
    methods = list(by_method)

    def row(heading: str, of: Any) -> list[str]:
        return [heading, *(shown(of(*by_method[method]).tolist()) for method in methods)]

    corruptions = [row(name, lambda _, x, c=c: x[:, c].mean(axis=1)) for c, name in enumerate(names)]
    levels = [row(f"severity {level}", lambda _, x, s=s: x[:, :, s].mean(axis=1)) for s, level in enumerate(severities)]
    clean = row("clean", lambda clean, _: clean)
    mean = row("mean of the corruptions", lambda _, x: x.mean(axis=(1, 2)))
    return {
        f"{arch}: test accuracy by severity, %": Table.of(["", *methods], [clean, *levels, mean]),
        f"{arch}: test accuracy by corruption, mean over severities, %": Table.of(["", *methods], [*corruptions, mean]),
    }


def _rows(pairs: dict[str, dict[str, Pair]], names: tuple[str, ...], severities: tuple[int, ...]) -> Table:
    """Return one row per network, corruption and severity; clean images are severity 0. Accuracies are fractions."""
    rows: list[tuple[str | int | float, ...]] = []
    for method, by_arch in pairs.items():
        for arch, (clean, corrupted) in by_arch.items():
            for number, values in enumerate(corrupted.tolist()):
                rows.append((method, arch, number, "clean", 0, float(clean[number])))
                for c, name in enumerate(names):
                    rows += [(method, arch, number, name, level, values[c][s]) for s, level in enumerate(severities)]
    return Table.of(("set", "network", "number", "corruption", "severity", "accuracy"), rows)
