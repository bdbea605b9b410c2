"""Task: turn a set from a folder into shards, the form that the other tasks use."""

from __future__ import annotations

from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.codec import content_digest
from cudd_core.compute.runtime import Runtime
from cudd_core.errors import DataError
from cudd_core.exchange import read_set
from cudd_core.progress import Progress
from cudd_core.records import Shard, SyntheticSet
from tasks.context import StageContext
from tasks.refs import Ref
from tasks.stage import run_stage, stage_task

VERSION = 1


def curriculum_shard(synthetic: SyntheticSet, curriculum: int, *, with_sources: bool) -> Shard:
    """Return the images of one curriculum. `with_sources`: whether the set was made from the run's own images."""
    chosen = synthetic.curricula == curriculum
    sources = synthetic.sources[chosen]
    return Shard(
        images=synthetic.images[chosen],
        labels=synthetic.labels[chosen],
        slices=synthetic.slices[chosen],
        sources=sources if with_sources else sources * 0 - 1,
        curriculum=curriculum,
    )


@stage_task("import", "import {folder} curriculum {curriculum}")
def import_set(context: StageContext, folder: str, digest: str, curriculum: int, with_sources: bool) -> State[Ref]:
    """Store one curriculum of the set in `folder`. `digest`: the set's content digest as read beforehand."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> Shard:
        synthetic = read_set(Path(folder)).synthetic
        if content_digest(synthetic) != digest:
            raise DataError(f"{folder} was changed while it was read. Start again.")
        return curriculum_shard(synthetic, curriculum, with_sources=with_sources)

    return run_stage(
        context,
        stage="import",
        title=f"import curriculum {curriculum}",
        version=VERSION,
        config={"curriculum": curriculum, "with_sources": with_sources},
        inputs={"set": digest},
        body=body,
        computes=False,
        draws=False,
    )
