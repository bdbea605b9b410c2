"""Task: all synthetic images of a curriculum at once, by trajectory matching."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.progress import Progress
from cudd_core.records import Selection, Shard, Trajectory
from cudd_core.stages import match_trajectories as stage
from tasks.context import StageContext
from tasks.naming import span
from tasks.refs import Ref
from tasks.shards import losses_of, save_preview
from tasks.stage import fetch, run_stage, stage_task
from tasks.train_expert import FIELDS as OF_EXPERTS


@stage_task("match-trajectories", "match trajectories slices {slices}")
def match_trajectories(
    context: StageContext,
    experts: tuple[Ref, ...],
    selections: tuple[Ref, ...],
    earlier: tuple[Ref, ...],
    slices: range,
    curriculum: int,
    config: SynthesisConfig,
) -> State[Ref]:
    """Optimise `slices` of all classes. `selections`: those of all blocks; `earlier`: the shards of S_{1:j-1}."""
    config = config.in_curriculum(curriculum)
    mtt = config.mtt

    def body(runtime: Runtime, work: Path, progress: Progress) -> Shard:
        split = context.train_images()
        shard = stage.match_trajectories(
            [fetch(context, ref, Trajectory).until(mtt.last_epoch) for ref in experts],
            [fetch(context, ref, Selection) for ref in selections],
            [fetch(context, ref, Shard) for ref in earlier],
            split,
            curriculum,
            config,
            context.seed,
            runtime,
            checkpoints=work / "checkpoint",
            progress=progress,
        )
        save_preview(shard, split, work)
        return shard

    return run_stage(
        context,
        stage="synthesize",
        title=f"synthesize slices {span(slices)}, all classes",
        version=stage.VERSION,
        config={
            "objective": config.objective,
            "iterations": config.iterations,
            # Crop and flip are read here too; the experts' other settings are in their digests.
            "mtt": mtt.model_dump(exclude={"experts"} | (OF_EXPERTS - {"crop", "flip"})),
            "slices": [slices.start, slices.stop],
            "curriculum": curriculum,
        },
        inputs={
            "data": context.data.train,
            "expert": experts,
            "selection": selections,
            "earlier": earlier,
        },
        body=body,
        computes=True,
        draws=True,
        metrics_of=losses_of,
    )
