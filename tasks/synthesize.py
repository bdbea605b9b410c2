"""Task: the synthetic images of some slices of one class block."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.progress import Progress
from cudd_core.records import LayerStatistics, NetworkRecord, Selection, Shard
from cudd_core.stages import synthesize as stage
from tasks.context import StageContext
from tasks.naming import span
from tasks.refs import Ref
from tasks.shards import losses_of, save_preview
from tasks.stage import fetch, run_stage, stage_task
from tasks.teachers import fetch_others


@stage_task("synthesize", "synthesize slices {slices}, classes {classes}")
def synthesize(
    context: StageContext,
    teacher: Ref,
    student: Ref | None,
    selection: Ref,
    classes: range,
    slices: range,
    curriculum: int,
    config: SynthesisConfig,
    statistics: tuple[Ref, ...] = (),
    others: tuple[Ref, ...] = (),
) -> State[Ref]:
    """Optimise the images of `slices` (Eq. 6), or keep the originals if synthesis is off.

    `classes`: those of `selection`, for names only. `statistics`: one per teacher. `others`: further teachers besides
    `teacher`.
    """
    config = config.in_curriculum(curriculum)
    student = student if config.minimises_eq_6 and config.weight_adv > 0 else None
    statistics = statistics if config.uses_pool_statistics else ()
    others = others if config.enabled else ()

    def body(runtime: Runtime, work: Path, progress: Progress) -> Shard:
        split = context.train_images()
        shard = stage.synthesize(
            fetch(context, teacher, NetworkRecord),
            fetch(context, student, NetworkRecord) if student else None,
            fetch(context, selection, Selection),
            slices,
            split,
            curriculum,
            config,
            context.seed,
            runtime,
            others=fetch_others(context, others),
            statistics=[fetch(context, ref, LayerStatistics) for ref in statistics],
            progress=progress,
        )
        save_preview(shard, split, work)
        return shard

    verb = "synthesize" if config.enabled else "keep"
    return run_stage(
        context,
        stage=verb,
        title=f"{verb} slices {span(slices)}, classes {span(classes)}",
        version=stage.VERSION,
        config={
            # With synthesis off, the other fields cannot change the images: real images are shared whatever they say.
            **(config.identity(unread=_unread(config, student)) if config.enabled else {"enabled": False}),
            "slices": [slices.start, slices.stop],
            "curriculum": curriculum,
        },
        inputs={
            "data": context.data.train,
            "selection": selection,
            "teacher": teacher if config.enabled else None,
            "student": student,
            "other teacher": others,
            **{f"statistics {number}" if number else "statistics": ref for number, ref in enumerate(statistics)},
        },
        body=body,
        computes=config.enabled,
        draws=config.enabled,
        metrics_of=losses_of,
    )


def _unread(config: SynthesisConfig, student: Ref | None) -> set[str]:
    """Return the fields that cannot matter here, so that ablations of a term share images made without it.

    Eq. 6 is what keys without `objective` mean: they are older than the field.
    """
    unread = {"log_every", *config.unread}
    if not config.minimises_eq_6:
        return unread
    unread |= {"objective"}
    if student is None:
        unread |= {"weight_adv", "teacher_correct_only"}
    if config.weight_reg == 0:
        unread |= {"regularization"}
    if config.weight_bn == 0:
        unread |= {"first_bn_factor", "bn_statistics"}
    if config.init != "patches":
        unread |= {"patch_grid", "patch_candidates"}
    return unread
