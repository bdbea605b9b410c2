"""The main job. `curricula` is Algorithm 1; `distill` puts a teacher before it and an evaluation after it."""

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
from cudd_core.schedule import class_blocks, curriculum_boundaries, slice_shards
from cudd_core.stages.train_network import EvaluationConfig
from cudd_core.training import TrainingConfig
from flows.cancel import keep_cancelled
from flows.catalogue import CATALOGUE, STAGES
from flows.prepare import opened_run
from flows.recipes import Recipe, apply_overrides, find_recipe, methods
from flows.results import Compared, Curriculum, Results, Teacher
from flows.run import PipelineRun, Round
from flows.summary import finish
from tasks.classify import classify
from tasks.features import features
from tasks.match_trajectories import match_trajectories
from tasks.measure import measure_network, preflight
from tasks.pool_statistics import pool_statistics
from tasks.refs import ByNetwork, Ref
from tasks.relabel import relabel
from tasks.select import select
from tasks.sets import assemble
from tasks.slots import tasks_in_flight
from tasks.squeeze import squeeze
from tasks.synthesize import synthesize
from tasks.train_expert import train_expert
from tasks.train_network import train_network
from tasks.train_student import train_student

Left = TypeVar("Left")

RUNNER: TaskRunner[PrefectFuture[Any]] = ThreadPoolTaskRunner(max_workers=tasks_in_flight())  # type: ignore[assignment]

# What Prefect's form of a deployment offers and refuses; the descriptions in it are those of the docstring's `Args`.
RECIPE_FORM = {
    "anyOf": [
        {"title": "named", "type": "string", "enum": list(CATALOGUE)},
        {"title": "file", "type": "string", "pattern": r"\.(ya?ml|toml|json)$"},
    ]
}
# Bounds stand beside the alternatives, not in them: the form then says which one a number breaks.
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
        recipe: What is distilled, and how. A file, on the worker's machine, ends in .yaml, .yml or .toml.
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
    """Teacher, curricula, baselines, labels, evaluation, report. Call it inside a flow."""
    stages = partial(pipeline, recipe=recipe)
    with opened_run(recipe, stages, force, runner, job) as run:
        return through(run, lambda: finish(run, recipe, stages(run)))


def through(run: PipelineRun, stages: Callable[[], Left]) -> Left:
    """Go through all stages, again where a stored output turns out damaged, and return what they left."""
    while True:
        try:
            return stages()
        except ArtifactDamaged as damage:
            # What was damaged is withdrawn. All else is found again at once, and only that is made anew.
            run.start_over(damage)


def pipeline(run: PipelineRun, recipe: Recipe) -> Results:
    """All stages. A walk (flows.walk) goes through them without computing."""
    teacher = measured_teacher(run, recipe)
    method, others = methods(recipe)
    # Random real images ask the teacher nothing: they need not wait for its verdicts.
    if any(each.asks_teacher for each in others.values()):
        teacher = judged(run, recipe, teacher)

    def ours(run: PipelineRun) -> Results:
        judge = teacher if teacher.verdicts else judged(run, recipe, teacher)
        rounds = curricula(run, recipe, method, judge, "curriculum")
        shards = tuple(shard for each in rounds for shard in each.shards)
        (dataset,) = run.gather("assemble", [run.submit(assemble, shards)])
        students = measure_students(run, rounds)
        sets = {"distilled": shards}
        if "selection" in recipe.baselines:
            sets["selection"] = originals(run, recipe, method, teacher, rounds)
        compared = compare_sets(run, recipe, teacher, sets)
        return Results(**vars(compared), teacher=judge, curricula=rounds, dataset=dataset, students=students)

    def theirs(run: PipelineRun) -> Compared:
        return compare_sets(run, recipe, teacher, baselines(run, recipe, others, teacher))

    # Algorithm 1 waits for one student at a time; other methods take the devices that it leaves free.
    results, compared = run.beside(ours, theirs)
    return replace(results, **results.joined_with(compared, order=("distilled", *recipe.baselines)))


def judged(run: PipelineRun, recipe: Recipe, teacher: Teacher) -> Teacher:
    """θ* and its answers on T, which the whole run uses."""
    blocks = class_blocks(run.context.data.num_classes, recipe.schedule.block_size)
    verdicts = run.gather("classify", [run.submit(classify, teacher.network, block) for block in blocks])
    return replace(teacher, verdicts=verdicts)


def measured_teacher(run: PipelineRun, recipe: Recipe) -> Teacher:
    """θ* (Eq. 2) and those that teach beside it, measured before any work that would be lost; no verdicts yet."""
    configs = list(enumerate(recipe.teachers, start=1))
    networks = run.gather("squeeze", [run.submit(squeeze, config, number) for number, config in configs])
    submitted = [
        run.submit(preflight, network, config, number)
        for network, (number, config) in zip(networks, configs, strict=True)
    ]
    accuracies = run.gather("preflight", submitted)
    return Teacher(networks[0], accuracies[0], (), networks[1:], accuracies[1:])


def obtain_experts(run: PipelineRun, method: Method) -> tuple[Ref, ...]:
    """The networks whose ways through T are matched; none where the objective is another."""
    synthesis = method.synthesis
    if not synthesis.enabled or synthesis.objective != "mtt":
        return ()
    wanted = [run.submit(train_expert, number, synthesis.mtt) for number in range(synthesis.mtt.experts)]
    return run.gather("train_expert", wanted)


def curricula(run: PipelineRun, recipe: Recipe, method: Method, teacher: Teacher, name: str) -> tuple[Curriculum, ...]:
    """Algorithm 1: for j = 1 … J select T_j (Eq. 5), synthesise S_j (Eq. 6), train φ_j on S_{1:j} (Eq. 8)."""
    blocks = class_blocks(run.context.data.num_classes, method.schedule.block_size)
    boundaries = curriculum_boundaries(method.schedule)
    experts = obtain_experts(run, method)
    student: Ref | None = None
    finished: list[Curriculum] = []
    shards: tuple[Ref, ...] = ()
    for j, (first, last) in enumerate(pairwise((0, *boundaries)), start=1):
        new = range(first, last)
        with run.round(f"{name} {j}", {"method": name, "curriculum": j, "ipc": last}) as current:
            # W(φ_{j-1}, T): the feedback evaluation. There is no student to ask at j = 1.
            wrong: tuple[Ref | None, ...] = (None,) * len(blocks)
            if student is not None and method.select.asks_student:
                asked = [run.submit(classify, student, block) for block in blocks]
                wrong = run.gather("classify", asked, current)
            # T_j ~ R(θ*, T \ T_{1:j-1}) ∩ W(φ_{j-1}, T \ T_{1:j-1})
            right = teacher.verdicts if method.select.asks_teacher else (None,) * len(blocks)
            places: tuple[Ref | None, ...] = (None,) * len(blocks)
            if method.select.geometric:
                asked = [run.submit(features, teacher.network, block) for block in blocks]
                places = run.gather("features", asked, current)
            chosen = run.gather(
                "select",
                [
                    run.submit(select, block, new, theirs, ours, taken(finished, b), method.select, near)
                    for b, (block, theirs, ours, near) in enumerate(zip(blocks, right, wrong, places, strict=True))
                ],
                current,
            )
            statistics: tuple[Ref, ...] = ()
            if method.synthesis.uses_pool_statistics:
                answers = tuple(ref for ref in wrong if ref is not None)
                asked = [
                    run.submit(pool_statistics, network, teacher.verdicts, answers, j, number)
                    for number, network in enumerate(teacher.networks, start=1)
                ]
                statistics = run.gather("statistics", asked, current)
            # S_j ← T_j, then minimise L over S_j.
            if experts:
                asked = [run.submit(match_trajectories, experts, chosen, shards, new, j, method.synthesis)]
            else:
                # Blocks and runs of slices are independent.
                asked = [
                    run.submit(
                        synthesize,
                        *(teacher.network, student, selection, block, slices, j, method.synthesis),
                        *(statistics, teacher.others),
                    )
                    for slices in slice_shards(first, last, method.schedule.slices_per_shard)
                    for block, selection in zip(blocks, chosen, strict=True)
                ]
            made = run.gather("synthesize", asked, current)
            shards += made
            # φ_j on S_{1:j}; the last one teaches nobody.
            if (method.uses_students and last < boundaries[-1]) or (recipe.student.train_last and name == "curriculum"):
                learning = (recipe.student.training_of(j), recipe.student.temperature)
                labels = label(run, recipe, teacher, f"{name} {j}", shards, learning, current)
                submitted = run.submit(
                    train_student,
                    *(teacher.network, student, shards, labels, j, recipe.student, recipe.relabel, teacher.others),
                )
                (student,) = run.gather("train_student", [submitted], current)
            else:
                student = None
        finished.append(Curriculum(j, last, chosen, made, student, current))
    return tuple(finished)


def taken(finished: list[Curriculum], block: int) -> tuple[Ref, ...]:
    """T_{1:j-1} of one block: never used again."""
    return tuple(curriculum.selections[block] for curriculum in finished)


def label(
    run: PipelineRun,
    recipe: Recipe,
    teacher: Teacher,
    name: str,
    shards: tuple[Ref, ...],
    learning: tuple[TrainingConfig, float] | None = None,
    current: Round | None = None,
) -> tuple[Ref, ...]:
    """Soft labels of a set for a training at a temperature (default: the evaluation's); none where none are stored."""
    if recipe.relabel.storage == "none":
        return ()
    training, temperature = learning or (recipe.evaluation.training, recipe.evaluation.temperature)
    parts = slice_shards(0, recipe.relabel.distinct_epochs(training.epochs), recipe.relabel.epochs_per_shard)
    settings = (training.batch_size, recipe.relabel, temperature, teacher.others)
    return run.gather(
        "relabel", [run.submit(relabel, teacher.network, shards, name, part, *settings) for part in parts], current
    )


def label_sets(
    run: PipelineRun, recipe: Recipe, teacher: Teacher, sets: Mapping[str, tuple[Ref, ...]]
) -> dict[str, tuple[Ref, ...]]:
    """Labels of all sets for the evaluation; none where that asks for the classes alone."""
    if recipe.evaluation.labels == "hard":
        return dict.fromkeys(sets, ())
    return {name: label(run, recipe, teacher, name, shards) for name, shards in sets.items()}


def measure_students(run: PipelineRun, rounds: tuple[Curriculum, ...]) -> dict[int, Ref]:
    """Test accuracy of every student, by curriculum; for the report alone."""
    trained = {each.index: each.student for each in rounds if each.student is not None}
    submitted = [run.submit(measure_network, student, f"student {j}") for j, student in trained.items()]
    return dict(zip(trained, run.gather("measure", submitted), strict=True))


def originals(
    run: PipelineRun, recipe: Recipe, method: Method, teacher: Teacher, rounds: tuple[Curriculum, ...]
) -> tuple[Ref, ...]:
    """The baseline `selection`: T_{1:J} as it was chosen."""
    off = method.synthesis.model_copy(update={"enabled": False})
    starts = (0, *(each.ipc for each in rounds))
    blocks = class_blocks(run.context.data.num_classes, method.schedule.block_size)
    submitted = [
        run.submit(synthesize, teacher.network, None, chosen, block, slices, each.index, off)
        for first, each in zip(starts, rounds, strict=False)
        for slices in slice_shards(first, each.ipc, method.schedule.slices_per_shard)
        for block, chosen in zip(blocks, each.selections, strict=True)
    ]
    return run.gather("synthesize", submitted)


def baselines(
    run: PipelineRun, recipe: Recipe, methods: Mapping[str, Method], teacher: Teacher
) -> dict[str, tuple[Ref, ...]]:
    """The sets that CUDD is compared with and that take nothing of its curricula, made by the same stages."""
    sets: dict[str, tuple[Ref, ...]] = {}
    for name, method in methods.items():
        rounds = curricula(run, recipe, method, teacher, name)
        sets[name] = tuple(shard for each in rounds for shard in each.shards)
    return sets


def compare_sets(run: PipelineRun, recipe: Recipe, teacher: Teacher, sets: Mapping[str, tuple[Ref, ...]]) -> Compared:
    """Label every set, train fresh networks on it and measure them, as `recipe.evaluation` says."""
    labels = label_sets(run, recipe, teacher, sets)
    networks = train_networks(run, recipe, teacher, sets, labels)
    return Compared(sets, labels, networks, measure_networks(run, networks))


def train_networks(
    run: PipelineRun,
    recipe: Recipe,
    teacher: Teacher,
    sets: Mapping[str, tuple[Ref, ...]],
    labels: Mapping[str, tuple[Ref, ...]],
) -> ByNetwork:
    """Fresh networks on every set under equal conditions: method → architecture → one reference per seed."""
    config: EvaluationConfig = recipe.evaluation
    archs = config.archs or (recipe.teacher.arch,)
    wanted = [(name, arch, number) for number in range(config.seeds) for arch in archs for name in sets]
    submitted = [
        run.submit(
            train_network,
            *(teacher.network, sets[name], labels[name], name, arch, number, config, recipe.relabel, teacher.others),
        )
        for name, arch, number in wanted
    ]
    trained = dict(zip(wanted, run.gather("train_network", submitted), strict=True))
    return {
        name: {arch: tuple(trained[name, arch, number] for number in range(config.seeds)) for arch in archs}
        for name in sets
    }


def measure_networks(run: PipelineRun, networks: ByNetwork) -> ByNetwork:
    """Test accuracy of every fresh network, in the same order."""
    wanted = [
        (name, arch, number, ref)
        for name, by_arch in networks.items()
        for arch, refs in by_arch.items()
        for number, ref in enumerate(refs)
    ]
    submitted = [run.submit(measure_network, ref, f"{name} {arch} #{number}") for name, arch, number, ref in wanted]
    measured = iter(run.gather("measure", submitted))
    return {
        name: {arch: tuple(next(measured) for _ in refs) for arch, refs in by_arch.items()}
        for name, by_arch in networks.items()
    }
