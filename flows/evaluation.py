"""Sets under equal conditions: their soft labels, fresh networks trained on them, and how well these do."""

from __future__ import annotations

from collections.abc import Mapping

from cudd_core.stages.train_network import EvaluationConfig
from cudd_core.training import TrainingConfig
from flows.recipe import Recipe
from flows.results import Compared, Curriculum, Teacher
from flows.run import PipelineRun, Round
from tasks.measure import measure_network
from tasks.refs import ByNetwork, Ref
from tasks.relabel import relabel
from tasks.train_network import train_network


def compare_sets(run: PipelineRun, recipe: Recipe, teacher: Teacher, sets: Mapping[str, tuple[Ref, ...]]) -> Compared:
    """Label every set, train fresh networks on it and measure them, as `recipe.evaluation` says."""
    labels = label_sets(run, recipe, teacher, sets)
    networks = train_networks(run, recipe, teacher, sets, labels)
    return Compared(sets, labels, networks, measure_networks(run, networks))


def label(
    run: PipelineRun,
    recipe: Recipe,
    teacher: Teacher,
    name: str,
    shards: tuple[Ref, ...],
    learning: tuple[TrainingConfig, float] | None = None,
    current: Round | None = None,
) -> tuple[Ref, ...]:
    """Return a set's soft labels for a training at a temperature (default: the evaluation's); none if not stored."""
    if recipe.relabel.storage == "none":
        return ()
    training, temperature = learning or (recipe.evaluation.training, recipe.evaluation.temperature)
    parts = recipe.relabel.shards(training.epochs)
    settings = (training.batch_size, recipe.relabel, temperature, teacher.others)
    return run.gather(
        "relabel", [run.submit(relabel, teacher.network, shards, name, part, *settings) for part in parts], current
    )


def label_sets(
    run: PipelineRun, recipe: Recipe, teacher: Teacher, sets: Mapping[str, tuple[Ref, ...]]
) -> dict[str, tuple[Ref, ...]]:
    """Return the labels of all sets for the evaluation; none if it uses hard labels."""
    if recipe.evaluation.labels == "hard":
        return dict.fromkeys(sets, ())
    return {name: label(run, recipe, teacher, name, shards) for name, shards in sets.items()}


def train_networks(
    run: PipelineRun,
    recipe: Recipe,
    teacher: Teacher,
    sets: Mapping[str, tuple[Ref, ...]],
    labels: Mapping[str, tuple[Ref, ...]],
) -> ByNetwork:
    """Train fresh networks on every set under equal conditions: method → architecture → one reference per seed."""
    config: EvaluationConfig = recipe.evaluation
    archs = recipe.evaluation_archs
    # One set after the other: a process keeps the one that it read last.
    wanted = [(name, arch, number) for name in sets for arch in archs for number in range(config.seeds)]
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
    """Measure the test accuracy of every fresh network; return references in the same order."""
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


def measure_students(run: PipelineRun, rounds: tuple[Curriculum, ...]) -> dict[int, Ref]:
    """Measure the test accuracy of every student, by curriculum; only for the report."""
    trained = {each.index: each.student for each in rounds if each.student is not None}
    submitted = [run.submit(measure_network, student, f"student {j}") for j, student in trained.items()]
    return dict(zip(trained, run.gather("measure", submitted), strict=True))
