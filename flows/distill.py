"""The main job. `curricula` is Algorithm 1; `distill` adds the teacher before it and the evaluation after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, TypeVar

from prefect import flow
from prefect.futures import PrefectFuture
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from pydantic import Field, WithJsonSchema

from cudd_core.baselines import Method
from cudd_core.errors import ArtifactDamaged
from cudd_core.schedule import curriculum_boundaries, cut
from flows.cancel import keep_cancelled
from flows.catalogue import CATALOGUE, STAGES
from flows.curriculum import feedback, matched, obtain_experts, selected, synthesised, taught, unoptimised
from flows.evaluation import compare_sets, measure_students
from flows.prepare import opened_run
from flows.recipe import Recipe, methods
from flows.recipes import apply_overrides, find_recipe
from flows.results import Compared, Curriculum, Results, Teacher, shards_of
from flows.run import PipelineRun
from flows.summary import finish
from tasks.classify import classify
from tasks.measure import preflight
from tasks.refs import Ref
from tasks.sets import assemble
from tasks.slots import tasks_in_flight
from tasks.squeeze import squeeze

Left = TypeVar("Left")

RUNNER: TaskRunner[PrefectFuture[Any]] = ThreadPoolTaskRunner(max_workers=tasks_in_flight())  # type: ignore[assignment]

# What a deployment's form in Prefect offers and refuses; its descriptions are taken from the docstring's `Args`.
RECIPE_FORM = {
    "anyOf": [
        {"title": "named", "type": "string", "enum": list(CATALOGUE)},
        {"title": "file", "type": "string", "pattern": r"\.(ya?ml|toml|json)$"},
    ]
}
# Bounds are beside the alternatives, not inside them, so that the form says which bound a number breaks.
_NUMBER = {"anyOf": [{"title": "number", "type": "integer"}, {"title": "the recipe's", "type": "null"}]}
_IPC = {**_NUMBER, "minimum": 1, "maximum": 5000}
_SEED = {**_NUMBER, "minimum": 0, "maximum": 2**31 - 1}
SETTINGS_FORM = {"type": "array", "items": {"type": "string", "pattern": ".+="}}
_STAGES = {"type": "array", "items": {"type": "string", "enum": list(STAGES)}}


@flow(name="distill", flow_run_name="distill {recipe}", task_runner=RUNNER, on_failure=[keep_cancelled])
def distill(
    recipe: Annotated[str, WithJsonSchema(RECIPE_FORM)] = "digits",
    ipc: Annotated[int | None, Field(ge=1, le=5000), WithJsonSchema(_IPC)] = None,
    seed: Annotated[int | None, Field(ge=0, lt=2**31), WithJsonSchema(_SEED)] = None,
    data_root: str = "",
    overrides: Annotated[list[str], WithJsonSchema(SETTINGS_FORM)] = [],  # noqa: B006
    force_stages: Annotated[list[str], WithJsonSchema(_STAGES)] = [],  # noqa: B006
    runner: Annotated[str, Field(pattern="^(local|ray|ray://.+)$")] = "local",
) -> dict[str, Any]:
    """Distil a data set: teacher → curricula → evaluation → report. Returns the summary (docs/design.md).

    Args:
        recipe: What is distilled, and how. A file, on the worker's machine, ends in .yaml, .yml, .toml or .json.
        ipc: Images per class.
        seed: Another seed gives another set.
        data_root: Folder or s3:// prefix of the data, as the worker sees it. Empty: the recipe's.
        overrides: Further settings, one key=value each, for example evaluation.seeds=1.
        force_stages: Stages to compute again even where their output is stored.
        runner: Where heavy stages run: local, ray, or ray://host:10001.
    """
    short = {"schedule.ipc": ipc, "seed": seed, "data.root": data_root or None}
    settings = [f"{key}={value}" for key, value in short.items() if value is not None]
    configuration = apply_overrides(find_recipe(recipe), [*overrides, *settings])
    return main_job(configuration, frozenset(force_stages), runner)


def main_job(
    recipe: Recipe, force: frozenset[str] = frozenset(), runner: str = "local", job: str = "distill"
) -> dict[str, Any]:
    """Run teacher, curricula, baselines, labels, evaluation and report. Call this inside a flow."""
    stages = partial(pipeline, recipe=recipe)
    with opened_run(recipe, stages, force, runner, job) as run:
        return through(run, lambda: finish(run, recipe, stages(run)))


def through(run: PipelineRun, stages: Callable[[], Left]) -> Left:
    """Go through all stages, again if a stored output turns out to be damaged, and return their results."""
    while True:
        try:
            return stages()
        except ArtifactDamaged as damage:
            # The damaged output has been withdrawn. Everything else is found again at once; only that is recomputed.
            run.start_over(damage)


def pipeline(run: PipelineRun, recipe: Recipe) -> Results:
    """Go through all stages. A walk (flows.walk) does so without computing."""
    teacher = measured_teacher(run, recipe)
    method, others = methods(recipe)
    # Random real images do not need the teacher's verdicts, so they need not wait for them.
    if any(each.asks_teacher for each in others.values()):
        teacher = judged(run, recipe, teacher)

    def ours(run: PipelineRun) -> Results:
        judge = teacher if teacher.verdicts else judged(run, recipe, teacher)
        rounds = curricula(run, recipe, method, judge, "curriculum", recipe.student.train_last)
        shards = shards_of(rounds)
        (dataset,) = run.gather("assemble", [run.submit(assemble, shards)])
        students = measure_students(run, rounds)
        sets = {"distilled": shards}
        if "selection" in recipe.baselines:
            sets["selection"] = unoptimised(run, method, teacher, rounds)
        compared = compare_sets(run, recipe, teacher, sets)
        return Results(**vars(compared), teacher=judge, curricula=rounds, dataset=dataset, students=students)

    def theirs(run: PipelineRun) -> Compared:
        return compare_sets(run, recipe, teacher, baselines(run, recipe, others, teacher))

    # Algorithm 1 waits for one student at a time; other methods use the devices that it leaves idle.
    results, compared = run.beside(ours, theirs)
    return replace(results, **results.joined_with(compared, order=("distilled", *recipe.baselines)))


def judged(run: PipelineRun, recipe: Recipe, teacher: Teacher) -> Teacher:
    """Return θ* with its verdicts on T, which the whole run uses."""
    blocks = cut(range(run.context.data.num_classes), recipe.schedule.block_size)
    verdicts = run.gather("classify", [run.submit(classify, teacher.network, block) for block in blocks])
    return replace(teacher, verdicts=verdicts)


def measured_teacher(run: PipelineRun, recipe: Recipe) -> Teacher:
    """Return θ* (Eq. 2) and the other teachers, measured before any work that could be wasted; no verdicts yet."""
    configs = list(enumerate(recipe.teachers, start=1))
    networks = run.gather("squeeze", [run.submit(squeeze, config, number) for number, config in configs])
    submitted = [
        run.submit(preflight, network, config, number)
        for network, (number, config) in zip(networks, configs, strict=True)
    ]
    accuracies = run.gather("preflight", submitted)
    return Teacher(networks[0], accuracies[0], (), networks[1:], accuracies[1:])


def curricula(
    run: PipelineRun, recipe: Recipe, method: Method, teacher: Teacher, name: str, train_last: bool = False
) -> tuple[Curriculum, ...]:
    """Algorithm 1: for j = 1 … J select T_j (Eq. 5), synthesise S_j (Eq. 6), train φ_j on S_{1:j} (Eq. 8)."""
    boundaries = curriculum_boundaries(method.schedule)
    experts = obtain_experts(run, method)
    student: Ref | None = None
    finished: list[Curriculum] = []
    shards: tuple[Ref, ...] = ()
    for j, (first, last) in enumerate(pairwise((0, *boundaries)), start=1):
        new = range(first, last)
        with run.round(f"{name} {j}", {"method": name, "curriculum": j, "ipc": last}) as current:
            # W(φ_{j-1}, T): the feedback evaluation. There is no student to ask at j = 1.
            wrong = feedback(run, method, student, current)
            # T_j ~ R(θ*, T \ T_{1:j-1}) ∩ W(φ_{j-1}, T \ T_{1:j-1})
            chosen = selected(run, method, teacher, wrong, new, finished, current)
            # S_j ← T_j, then minimise L over S_j.
            if experts:
                made = matched(run, method, experts, chosen, shards, new, j, current)
            else:
                made = synthesised(run, method, teacher, student, wrong, chosen, new, j, current)
            shards += made
            # φ_j on S_{1:j}; no curriculum needs the last one.
            if train_last or (method.uses_students and last < boundaries[-1]):
                student = taught(run, recipe, teacher, student, shards, j, current)
            else:
                student = None
        finished.append(Curriculum(j, last, chosen, made, student, current))
    return tuple(finished)


def baselines(
    run: PipelineRun, recipe: Recipe, methods: Mapping[str, Method], teacher: Teacher
) -> dict[str, tuple[Ref, ...]]:
    """Return the sets that CUDD is compared with and that use nothing of its curricula, made by the same stages."""
    sets: dict[str, tuple[Ref, ...]] = {}
    for name, method in methods.items():
        rounds = curricula(run, recipe, method, teacher, name)
        sets[name] = shards_of(rounds)
    return sets
