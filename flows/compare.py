"""Compare recipes, baselines, seeds, architectures and variants in one table, by the stages that every run uses."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from pydantic import Field, WithJsonSchema

from cudd_core.comparison import Cell, Line, VariantName, tabulate
from cudd_core.errors import UserError
from cudd_core.reporting import comparison as reporting
from cudd_core.reporting.comparison import Report
from cudd_core.reporting.comparison_figure import cost_figure, margins_figure
from cudd_core.reporting.theme import png_bytes
from flows.ablations import ABLATIONS
from flows.cancel import keep_cancelled
from flows.checks import check_data, check_recipe
from flows.comparison import Distillation, all_stages, cells_of, distil_and_measure, made_of
from flows.distill import RECIPE_FORM, RUNNER, SETTINGS_FORM, through
from flows.prepare import link_in_prefect, opened_run
from flows.recipe import Baseline, Recipe
from flows.run import StagesFailed, ended
from flows.summary import device_name, versions
from flows.variants import Variant, expand, refuse_settings_that_lose
from tasks.addresses import SUMMARY_FILE, home_folder, results_folder
from tasks.pages import show
from tasks.store import Store

_RECIPES = {"type": "array", "items": RECIPE_FORM, "minItems": 1}
_BASELINES = {"type": "array", "items": {"type": "string", "enum": list(get_args(Baseline))}}
_ABLATION = {"type": "string", "enum": ["", *ABLATIONS]}


def _flow_run_name() -> str:
    return f"compare {', '.join(Path(recipe).stem for recipe in flow_run.get_parameters()['recipes'])}"


@flow(name="compare", flow_run_name=_flow_run_name, task_runner=RUNNER, on_failure=[keep_cancelled])
def compare(
    recipes: Annotated[list[str], WithJsonSchema(_RECIPES)] = ["digits"],  # noqa: B006
    baselines: Annotated[list[str], WithJsonSchema(_BASELINES)] = [],  # noqa: B006
    seeds: Annotated[int, Field(ge=0, le=100)] = 0,
    archs: list[str] = [],  # noqa: B006
    overrides: Annotated[list[str], WithJsonSchema(SETTINGS_FORM)] = [],  # noqa: B006
    vary: Annotated[list[str], WithJsonSchema(SETTINGS_FORM)] = [],  # noqa: B006
    ablation: Annotated[str, WithJsonSchema(_ABLATION)] = "",
    repeats: Annotated[int, Field(ge=1, le=100)] = 1,
    ranking: bool = False,
    full_data: bool = False,
    runner: Annotated[str, Field(pattern="^(local|ray|ray://.+)$")] = "local",
) -> dict[str, Any]:
    """Compare recipes with baselines and with variants of themselves. Returns the comparison's summary.

    Args:
        recipes: Recipes to compare: names, or files on the worker's machine.
        baselines: Sets to compare with. Empty: each recipe's own.
        seeds: Fresh networks per set and architecture. 0: each recipe's own number.
        archs: Architectures to evaluate on. Empty: each recipe's own.
        overrides: Further settings for all recipes, one key=value each.
        vary: Variants of every recipe, one key=value,value,… each; all combinations are run.
        ablation: One of the paper's ablations, as variants of every recipe.
        repeats: How many times each variant is distilled, with the recipe's seed and those after it.
        ranking: Also train on hard labels and without augmentation, for DD-Ranking's scores.
        full_data: Also train every architecture on all of the data, except the teacher's, whose accuracy is known.
        runner: Where heavy stages run: local, ray, or ray://host:10001.
    """
    short = {"baselines": baselines, "evaluation.archs": archs, "evaluation.seeds": [str(seeds)] if seeds else []}
    settings = [f"{key}={','.join(values)}" for key, values in short.items() if values]
    refuse_settings_that_lose([overrides, settings])
    variants = expand(recipes, [*overrides, *settings], vary, ablation, repeats)
    for variant in variants:
        check(variant, runner)
    command = command_of(recipes, [*overrides, *settings], vary, ablation, repeats, ranking, full_data)
    names = ", ".join(dict.fromkeys(variant.recipes[0].name for variant in variants))
    with opened_comparison(names, command) as (store, comparison):
        measured: dict[VariantName, list[Distillation]] = {}
        failures: list[tuple[str, str, str]] = []
        for variant in variants:
            try:
                measured[variant.name] = [
                    distillation(_title(variant, recipe), recipe, ranking, full_data, runner, comparison)
                    for recipe in variant.recipes
                ]
            except (StagesFailed, UserError) as error:
                # The other variants' results are still useful. This one's lines are missing; the run fails at its end.
                failures.append((*variant.name, str(error)))
        question = ABLATIONS[ablation].question if ablation else ""
        report = report_of(names, variants, measured, failures, question, command, store)
        summary = publish(store, comparison, report, measured)
        if failures:
            raise StagesFailed(_failed(failures, summary))
        return summary


@flow(
    name="distillation",
    flow_run_name="{title}",
    task_runner=RUNNER,
    on_failure=[keep_cancelled],
    on_crashed=[keep_cancelled],
)
def distillation(
    title: str, recipe: Recipe, ranking: bool, full_data: bool, runner: str, comparison: str
) -> Distillation:
    """Distil and measure one recipe of a comparison: a pipeline run like any other, nested under it in MLflow."""
    stages = partial(all_stages, recipe=recipe, ranking=ranking)
    labelled = 2 if ranking else 1  # as the recipe says, and without augmentation
    with opened_run(recipe, stages, runner=runner, job="compare", parent=comparison, labelled=labelled) as run:
        return through(run, lambda: distil_and_measure(run, recipe, ranking, full_data))


def check(variant: Variant, runner: str) -> None:
    """Refuse a variant that is bound to fail, before anything of the comparison is computed."""
    recipe = variant.recipes[0]  # the others differ only in their seeds
    try:
        check_recipe(recipe, frozenset(), runner)
        check_data(recipe)
    except UserError as error:
        raise type(error)(f"{', '.join(variant.name)}: {error}") from error


@contextmanager
def opened_comparison(names: str, command: str) -> Iterator[tuple[Store, str]]:
    """Open the store and the comparison's own MLflow run, and end that run with the status that fits the outcome."""
    store = Store.from_environment().connect()
    tags = {"cudd.comparison": names, "cudd.prefect_flow_run": str(flow_run.get_id() or "")}
    run_id = store.pipelines.start(f"compare {names}", tags, {"command": command})
    with ended(store, run_id):
        link_in_prefect(store, run_id)
        yield store, run_id


def report_of(
    names: str,
    variants: Sequence[Variant],
    measured: Mapping[VariantName, Sequence[Distillation]],
    failures: Sequence[tuple[str, str, str]],
    question: str,
    command: str,
    store: Store,
) -> Report:
    """Return the table of all measurements, with what they cost when they were first computed."""
    took = {attempt.run_id: attempt.seconds for attempt in store.ledger().attempts}
    done = [variant for variant in variants if variant.name in measured]
    cells: list[Cell] = [cell for variant in done for cell in cells_of(variant, measured[variant.name], took)]
    lines: tuple[Line, ...] = tabulate(cells, {variant.name: variant.reference for variant in done})
    made = tuple(made_of(variant, measured[variant.name], took) for variant in done)
    return Report(names, command, lines, made, tuple(failures), device_name(variants[0].recipes[0]), question)


def publish(
    store: Store, comparison: str, report: Report, measured: Mapping[VariantName, Sequence[Distillation]]
) -> dict[str, Any]:
    """Write the files, log them to MLflow, show the table in Prefect; return the summary (docs/compare.md)."""
    folder = results_folder(home_folder(), comparison)
    folder.mkdir(parents=True, exist_ok=True)
    cost = cost_figure(report.made)
    pictures = {"margins": png_bytes(margins_figure(report))} if report.lines else {}
    pictures |= {"cost": png_bytes(cost)} if cost is not None else {}
    for name, png in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    (folder / "comparison.md").write_text(reporting.markdown(report), encoding="utf-8")
    (folder / "comparison.csv").write_text(reporting.comma_separated(report.lines), encoding="utf-8")
    (folder / "comparison.html").write_text(reporting.page(report, pictures), encoding="utf-8")
    every = [each for distillations in measured.values() for each in distillations]
    summary = {
        "command": report.command,
        "run_id": str(flow_run.get_id() or ""),
        "mlflow_run_id": comparison,
        "tracking_uri": store.display_uri,
        "reused_tasks": sum(each.reused for each in every),
        "computed_tasks": sum(each.computed for each in every),
        "rows": reporting.plain_rows(report.lines),
        "variants": [_plain(one) for one in report.made],
        "failures": [dict(zip(("recipe", "variant", "why"), failure, strict=True)) for failure in report.failures],
        "device": report.device,
        "versions": versions(),
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2), encoding="utf-8")
    store.pipelines.log_files(comparison, folder)
    table = reporting.results_table(report).records()
    show(create_table_artifact, table=table, description="\n\n".join(reporting.notes(report)))
    return summary


def command_of(
    recipes: Sequence[str],
    settings: Sequence[str],
    vary: Sequence[str],
    ablation: str,
    repeats: int,
    ranking: bool,
    full_data: bool,
) -> str:
    """Return the command that makes this comparison."""
    words = ["cudd", "compare", ",".join(recipes)]
    words += [word for text in settings for word in ("--set", text)]
    words += [word for text in vary for word in ("--vary", text)]
    words += ["--ablation", ablation] if ablation else []
    words += ["--repeats", str(repeats)] if repeats > 1 else []
    words += ["--ranking"] if ranking else []
    words += ["--full-data"] if full_data else []
    return shlex.join(words)


def _title(variant: Variant, recipe: Recipe) -> str:
    return f"{recipe.name}, {variant.label}" + (f", seed {recipe.seed}" if len(variant.recipes) > 1 else "")


def _plain(made: reporting.Made) -> dict[str, Any]:
    """Return plain values, for JSON."""
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(made).items()}
    return values | {"students": {str(j): accuracy for j, accuracy in made.students.items()}}


def _failed(failures: Sequence[tuple[str, str, str]], summary: Mapping[str, Any]) -> str:
    why = "\n".join(f"  {recipe}, {variant}: {error}" for recipe, variant, error in failures)
    run = summary["mlflow_run_id"]
    return (
        f"{len(failures)} variant(s) have no results. The others' table is in {results_folder(home_folder(), run)} and "
        f"stored with MLflow run {run}; the same command does only what is missing:\n{why}"
    )
