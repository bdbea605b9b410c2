"""Task: a network's features of the training images of one class block."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.data import decode_ahead
from cudd_core.progress import Progress
from cudd_core.records import Features, NetworkRecord
from cudd_core.stages import features as stage
from tasks.context import StageContext
from tasks.naming import span
from tasks.refs import Ref
from tasks.stage import fetch, run_stage, stage_task


@stage_task("features", "features classes {classes}")
def features(context: StageContext, network: Ref, classes: range) -> State[Ref]:
    """Compute the features of every training image of `classes`, once for all policies that use them."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Features:
        record = fetch(context, network, NetworkRecord)
        split = context.train_images()
        decode_ahead(split, progress)
        return stage.features(record, split, classes, runtime, progress=progress)

    return run_stage(
        context,
        stage="features",
        title=f"features classes {span(classes)}",
        version=stage.VERSION,
        config={"classes": [classes.start, classes.stop]},
        inputs={"network": network, "data": context.data.train},
        body=body,
        computes=True,
        draws=False,
    )
