"""Task: the finished set. Also S_{1:j} in memory, which is assembled from shards wherever it is needed."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from prefect.client.schemas.objects import State

from cudd_core.compute.runtime import Runtime
from cudd_core.progress import Progress
from cudd_core.records import Shard, SyntheticSet
from tasks.context import StageContext
from tasks.progress import check_not_stopped
from tasks.refs import Ref
from tasks.stage import fetch, run_stage, stage_task

VERSION = 1


def set_digest(shards: tuple[Ref, ...]) -> str:
    """Return the digest that represents a set in the keys of stages that read all its shards."""
    return hashlib.sha256("\n".join(ref.digest for ref in shards).encode()).hexdigest()


def load_set(context: StageContext, shards: tuple[Ref, ...]) -> SyntheticSet:
    """Return S_{1:j}, assembled from its shards. Never change it: other tasks of this process get the same object.

    Labelling a large set takes many tasks, each of which would otherwise decode all of it.
    """
    class_names = context.data.open_train().class_names
    key = set_digest(shards), class_names
    with _reading:
        check_not_stopped("reading a set")  # the wait for the lock may have been long
        if key not in _read:
            _read.clear()  # before the next one takes its place in memory
            _read[key] = SyntheticSet.assemble_emptying([fetch(context, ref, Shard) for ref in shards], class_names)
        return _read[key]


_reading, _read = threading.Lock(), dict[tuple[str, tuple[str, ...]], SyntheticSet]()
"""The set that was read last, by its digest and class names."""


@stage_task("assemble", "assemble")
def assemble(context: StageContext, shards: tuple[Ref, ...]) -> State[Ref]:
    """Store the finished set S_{1:J}, which a run publishes, as one artifact."""

    def body(runtime: Runtime, work: Path, progress: Progress) -> SyntheticSet:
        return load_set(context, shards)

    return run_stage(
        context,
        stage="assemble",
        title="assemble",
        version=VERSION,
        config={},
        inputs={"shards": set_digest(shards), "data": context.data.train},
        body=body,
        computes=False,
        draws=False,
    )
