"""Class-incremental learning from distilled sets (Fig. 5)."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from prefect import flow
from pydantic import Field

from cudd_core.data import open_split
from cudd_core.errors import ConfigError
from cudd_core.models.registry import build_network
from cudd_core.records import Accuracy
from cudd_core.reporting.learning import learning_figure
from cudd_core.reporting.tables import Table, shown, summary_of
from cudd_core.reporting.theme import png_bytes
from cudd_core.schedule import learning_steps
from flows.cancel import keep_cancelled
from flows.distill import RUNNER
from flows.laboratory import Findings, laboratory
from flows.recipe import Recipe
from flows.results import Results
from flows.run import PipelineRun
from tasks.laboratory import learn_classes, measure_classes
from tasks.stage import fetch


@flow(name="continual", flow_run_name="continual {run}", task_runner=RUNNER, on_failure=[keep_cancelled])
def continual(
    run: str,
    steps: Annotated[int, Field(ge=1)] = 5,
    seeds: Annotated[int, Field(ge=1, le=100)] = 3,
    archs: list[str] = [],  # noqa: B006
) -> dict[str, Any]:
    """Learn the classes in steps, each from the images of all classes so far, for every set of a run.

    Args:
        run: MLflow run id of a distillation, or its folder.
        steps: Number of learning steps that the classes are split into.
        seeds: Number of class orders, each with a network of its own.
        archs: Architectures. Empty: the run's own.
    """

    def change(recipe: Recipe) -> Recipe:
        # Impossible requests are refused before anything is computed.
        if recipe.evaluation.labels == "hard":
            raise ConfigError(
                "continual trains on the teacher's labels, but this run's networks learnt the classes alone "
                "(evaluation.labels=hard). Give a run on soft labels."
            )
        train = open_split(recipe.data, recipe.data.train_split)
        learning_steps(len(train.class_names), steps, recipe.seed, order=0)
        for arch in archs:
            build_network(arch, len(train.class_names), train.channels, train.image_size, seed=0)
        return recipe

    def study(opened: PipelineRun, recipe: Recipe, results: Results) -> Findings:
        wanted = tuple(dict.fromkeys(archs)) or recipe.evaluation_archs
        return find(opened, recipe, results, steps, seeds, wanted)

    return laboratory("continual", run, change, study)


def find(
    opened: PipelineRun, recipe: Recipe, results: Results, steps: int, seeds: int, archs: tuple[str, ...]
) -> Findings:
    """Train a fresh network per set, architecture, order and step; measure each on the classes that it has learnt."""
    seen = [learning_steps(opened.context.data.num_classes, steps, recipe.seed, order) for order in range(seeds)]
    cells = [
        (arch, method, order, step)
        for order in range(seeds)
        for step in range(steps)
        for arch in archs
        for method in results.sets
    ]
    submitted = [
        opened.submit(
            *(learn_classes, results.teacher.network, results.sets[method], method, arch, order, step + 1),
            *(seen[order][step], recipe.evaluation, recipe.relabel, results.teacher.others),
        )
        for arch, method, order, step in cells
    ]
    networks = opened.gather("learn_classes", submitted)
    submitted = [
        opened.submit(measure_classes, ref, seen[order][step], f"{method} {arch} #{order} step {step + 1}")
        for (arch, method, order, step), ref in zip(cells, networks, strict=True)
    ]
    measured = opened.gather("measure_classes", submitted)
    found = {cell: fetch(opened.context, ref, Accuracy).accuracy for cell, ref in zip(cells, measured, strict=True)}
    # arch → method → [orders, steps]
    values = {
        arch: {
            method: np.array([[found[arch, method, o, s] for s in range(steps)] for o in range(seeds)])
            for method in results.sets
        }
        for arch in archs
    }
    classes = [len(each) for each in seen[0]]
    headings = ["classes seen", *results.sets]
    orders = "1 order" if seeds == 1 else f"{seeds} orders"
    return Findings(
        title=f"{recipe.name}: class-incremental learning in {steps} steps",
        document={
            "recipe": recipe.name,
            "seed": recipe.seed,
            "protocol": "a fresh network at every step, from the images of all classes so far (GDumb)",
            "classes_seen": classes,
            "orders": [[list(each) for each in order] for order in seen],
            "accuracy": {
                method: {
                    arch: [summary_of(values[arch][method][:, step].tolist()) for step in range(steps)]
                    for arch in archs
                }
                for method in results.sets
            },
        },
        tables={
            f"{arch}: test accuracy on the classes seen, %": Table.of(
                headings,
                [
                    [count, *(shown(values[arch][method][:, step].tolist()) for method in results.sets)]
                    for step, count in enumerate(classes)
                ],
            )
            for arch in archs
        },
        rows=Table.of(
            ("set", "network", "order", "step", "classes", "accuracy"),
            [(m, arch, o, s + 1, classes[s], found[arch, m, o, s]) for arch, m, o, s in cells],
        ),
        figures={
            f"continual-{arch.replace('/', '-')}": png_bytes(
                learning_figure(values[arch], classes, f"{recipe.name}, {arch}: {orders} of the classes")
            )
            for arch in archs
        },
    )
