"""Coverage (Fig. 9): synthetic images of a class among its originals, in the teacher's feature space."""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from cudd_core.data import open_split
from cudd_core.errors import ConfigError
from cudd_core.records import Coverage
from cudd_core.reporting.embedding import embedding_figure
from cudd_core.reporting.tables import Table
from cudd_core.reporting.theme import can_show, png_bytes
from cudd_core.stages.coverage import ORIGINALS
from flows.beginning import check_same_set, read_beginning
from flows.cancel import keep_cancelled
from flows.catalogue import did_you_mean
from flows.distill import RUNNER, pipeline
from flows.laboratory import Findings, laboratory
from flows.recipe import Recipe
from flows.results import Results
from flows.run import PipelineRun
from tasks.laboratory import coverage as measure_coverage
from tasks.refs import Ref
from tasks.stage import fetch
from tasks.store import Store

SCORES = ("density", "coverage", "homogeneity")


@flow(name="coverage", flow_run_name="coverage {run}", task_runner=RUNNER, on_failure=[keep_cancelled])
def coverage(
    run: str,
    classes: list[str] = [],  # noqa: B006
    beside: str = "",
    neighbours: Annotated[int, Field(ge=1, le=100)] = 5,
) -> dict[str, Any]:
    """Show the sets of a run, and of another run if wanted, among the originals of some classes.

    Args:
        run: MLflow run id of a distillation, or its folder.
        classes: Class names. Empty: the first class.
        beside: MLflow run id of another distillation of the same data.
        neighbours: Number of nearest neighbours, the k of density and coverage.
    """

    def change(recipe: Recipe) -> Recipe:
        labels_of(recipe, classes)
        if beside:  # before anything is computed
            split = open_split(recipe.data, recipe.data.train_split)
            distilled_set(Store.from_environment().connect(), split.digest, beside)
        return recipe

    def study(opened: PipelineRun, recipe: Recipe, results: Results) -> Findings:
        sets = dict(results.sets)
        if beside:
            sets[f"distilled {beside[:8]}"] = distilled_set(opened.context.store, opened.context.data.train, beside)
        return find(opened, recipe, results.teacher.network, sets, labels_of(recipe, classes), neighbours)

    return laboratory("coverage", run, change, study)


def labels_of(recipe: Recipe, names: list[str]) -> dict[str, int]:
    """Return class name → label of `names`, by default of the first class. Raises ConfigError for an unknown class."""
    known = open_split(recipe.data, recipe.data.train_split).class_names
    for name in names:
        if name not in known:
            listed = f"{', '.join(known[:10])}{', …' if len(known) > 10 else ''}"
            raise ConfigError(f"--class: the data has no class {name!r}.{did_you_mean(name, known)} Classes: {listed}.")
    return {name: known.index(name) for name in names or known[:1]}


def distilled_set(store: Store, train: str, run: str) -> tuple[Ref, ...]:
    """Return the shards of another run's finished set, if distilled from the training split with digest `train`.

    Raises:
        ConfigError: it was distilled from other data, is not finished, or has another set by now.
    """
    beginning = read_beginning(run, store)
    if beginning.data.train != train:
        raise ConfigError(f"--beside {run} was distilled from other data than this run. Give a run of the same data.")
    check_same_set(beginning, run, store)
    ledger = store.ledger()
    shards = pipeline(beginning.walk(store, ledger), beginning.recipe).sets["distilled"]
    if any(ledger.standing(ref.key) != "stored" for ref in shards):
        raise ConfigError(f"--beside {run} is not finished. Run its recipe to the end first.")
    return shards


def find(
    opened: PipelineRun,
    recipe: Recipe,
    teacher: Ref,
    sets: dict[str, tuple[Ref, ...]],
    labels: dict[str, int],
    neighbours: int,
) -> Findings:
    """Compare all sets in one embedding per class, with one task per class."""
    names, shards = tuple(sets), tuple(sets.values())
    submitted = [
        opened.submit(measure_coverage, teacher, names, shards, label, neighbours) for label in labels.values()
    ]
    refs = opened.gather("coverage", submitted)
    found: dict[str, Coverage] = {
        name: fetch(opened.context, ref, Coverage) for name, ref in zip(labels, refs, strict=True)
    }
    scores = {
        name: {
            each: dict(zip(SCORES, row, strict=True)) for each, row in zip(of.points, of.scores.tolist(), strict=True)
        }
        for name, of in found.items()
    }
    return Findings(
        title=f"{recipe.name}: coverage of the originals",
        document={
            "recipe": recipe.name,
            "seed": recipe.seed,
            "neighbours": neighbours,
            "images": {name: {each: len(points) for each, points in of.points.items()} for name, of in found.items()},
            # JSON has no NaN: scores that the originals cannot have are left out.
            "scores": {
                name: {each: {k: v for k, v in row.items() if v == v} for each, row in by_set.items()}
                for name, by_set in scores.items()
            },
        },
        tables={
            f"class {name}": Table.of(
                ("set", "images", *SCORES),
                [
                    (each, len(found[name].points[each]), *("–" if value != value else value for value in row.values()))
                    for each, row in by_set.items()
                ],
            )
            for name, by_set in scores.items()
        },
        rows=Table.of(
            ("class", "set", "x", "y"),
            [
                (name, each, x, y)
                for name, of in found.items()
                for each, points in of.points.items()
                for x, y in points.tolist()
            ],
        ),
        figures={
            f"coverage-{label}": png_bytes(
                _figure(found[name], scores[name], f"{recipe.name}: {name if can_show(name) else f'class {label}'}")
            )
            for name, label in labels.items()
        },
    )


def _figure(found: Coverage, scores: dict[str, dict[str, float]], title: str) -> Any:
    points = {name: each.numpy() for name, each in found.points.items()}
    originals = points.pop(ORIGINALS)
    captions = {
        name: ", ".join(f"{score} {scores[name][score]:.2f}" for score in ("coverage", "density")) for name in points
    }
    return embedding_figure(originals, points, captions, title)
