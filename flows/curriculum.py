"""The steps of one curriculum, each a stage or two: ask the student, select, synthesise, teach a student."""

from __future__ import annotations

from collections.abc import Sequence

from cudd_core.baselines import Method
from cudd_core.schedule import cut
from flows.evaluation import label
from flows.recipe import Recipe
from flows.results import Curriculum, Teacher
from flows.run import PipelineRun, Round
from tasks.classify import classify
from tasks.features import features
from tasks.match_trajectories import match_trajectories
from tasks.pool_statistics import pool_statistics
from tasks.refs import Ref
from tasks.select import select
from tasks.synthesize import synthesize
from tasks.train_expert import train_expert
from tasks.train_student import train_student

ByBlock = tuple[Ref | None, ...]
"""One reference per class block; None if no network was asked."""


def obtain_experts(run: PipelineRun, method: Method) -> tuple[Ref, ...]:
    """Return the experts, whose trajectories on T are matched; none if the objective is another."""
    synthesis = method.synthesis
    if not synthesis.matches_trajectories:
        return ()
    wanted = [run.submit(train_expert, number, synthesis.mtt) for number in range(synthesis.mtt.experts)]
    return run.gather("train_expert", wanted)


def blocks_of(run: PipelineRun, method: Method) -> tuple[range, ...]:
    """Return the class blocks that the stages of a method fan out over."""
    return cut(range(run.context.data.num_classes), method.schedule.block_size)


def feedback(run: PipelineRun, method: Method, student: Ref | None, current: Round) -> ByBlock:
    """Return the verdicts on T of the previous curriculum's student, by block; None if no student is asked."""
    blocks = blocks_of(run, method)
    if student is None or not method.select.asks_student:
        return (None,) * len(blocks)
    return run.gather("classify", [run.submit(classify, student, block) for block in blocks], current)


def selected(
    run: PipelineRun,
    method: Method,
    teacher: Teacher,
    wrong: ByBlock,
    new: range,
    finished: Sequence[Curriculum],
    current: Round,
) -> tuple[Ref, ...]:
    """Return T_j, the originals of slices `new`, by block: from R(θ*) ∩ W(φ_{j-1}) without any used before (Eq. 5)."""
    blocks = blocks_of(run, method)
    right: ByBlock = teacher.verdicts if method.select.asks_teacher else (None,) * len(blocks)
    places: ByBlock = (None,) * len(blocks)
    if method.select.geometric:
        places = run.gather("features", [run.submit(features, teacher.network, block) for block in blocks], current)
    asked = [
        run.submit(select, block, new, theirs, ours, used(finished, b), method.select, near)
        for b, (block, theirs, ours, near) in enumerate(zip(blocks, right, wrong, places, strict=True))
    ]
    return run.gather("select", asked, current)


def used(finished: Sequence[Curriculum], block: int) -> tuple[Ref, ...]:
    """Return T_{1:j-1} of one block, which is never used again."""
    return tuple(curriculum.selections[block] for curriculum in finished)


def matched(
    run: PipelineRun,
    method: Method,
    experts: tuple[Ref, ...],
    chosen: tuple[Ref, ...],
    shards: tuple[Ref, ...],
    new: range,
    j: int,
    current: Round,
) -> tuple[Ref, ...]:
    """Return S_j by trajectory matching, all of it at once, since a student trains on the whole set."""
    asked = run.submit(match_trajectories, experts, chosen, shards, new, j, method.synthesis)
    return run.gather("synthesize", [asked], current)


def synthesised(
    run: PipelineRun,
    method: Method,
    teacher: Teacher,
    student: Ref | None,
    wrong: ByBlock,
    chosen: tuple[Ref, ...],
    new: range,
    j: int,
    current: Round,
) -> tuple[Ref, ...]:
    """Return S_j by Eq. 6, in shards: blocks and ranges of slices are independent of each other."""
    statistics: tuple[Ref, ...] = ()
    if method.synthesis.uses_pool_statistics:
        answers = tuple(ref for ref in wrong if ref is not None)
        asked = [
            run.submit(pool_statistics, network, teacher.verdicts, answers, j, number)
            for number, network in enumerate(teacher.networks, start=1)
        ]
        statistics = run.gather("statistics", asked, current)
    blocks = blocks_of(run, method)
    settings = (method.synthesis, statistics, teacher.others)
    asked = [
        run.submit(synthesize, teacher.network, student, selection, block, slices, j, *settings)
        for slices in cut(new, method.schedule.slices_per_shard)
        for block, selection in zip(blocks, chosen, strict=True)
    ]
    return run.gather("synthesize", asked, current)


def unoptimised(run: PipelineRun, method: Method, teacher: Teacher, rounds: Sequence[Curriculum]) -> tuple[Ref, ...]:
    """Return T_{1:J} as it was selected: the baseline `selection`."""
    off = method.synthesis.model_copy(update={"enabled": False})
    starts = (0, *(each.ipc for each in rounds))
    blocks = blocks_of(run, method)
    asked = [
        run.submit(synthesize, teacher.network, None, chosen, block, slices, each.index, off)
        for first, each in zip(starts, rounds, strict=False)
        for slices in cut(range(first, each.ipc), method.schedule.slices_per_shard)
        for block, chosen in zip(blocks, each.selections, strict=True)
    ]
    return run.gather("synthesize", asked)


def taught(
    run: PipelineRun,
    recipe: Recipe,
    teacher: Teacher,
    student: Ref | None,
    shards: tuple[Ref, ...],
    j: int,
    current: Round,
) -> Ref:
    """Return φ_j, trained on S_{1:j} with the teachers' soft labels (Eq. 8); it may start from the previous student."""
    learning = (recipe.student.training_of(j), recipe.student.temperature)
    labels = label(run, recipe, teacher, current.name, shards, learning, current)
    settings = (recipe.student, recipe.relabel, teacher.others)
    asked = run.submit(train_student, teacher.network, student, shards, labels, j, *settings)
    (trained,) = run.gather("train_student", [asked], current)
    return trained
