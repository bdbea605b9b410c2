"""The labels of a training: those that were stored, or the teachers that give them again."""

from __future__ import annotations

from typing import Any

from cudd_core.data.replay import ReplayConfig
from cudd_core.distillation import LabelSource
from cudd_core.labelling import Teaching
from cudd_core.records import LabelShard, NetworkRecord
from cudd_core.stages.relabel import VERSION, RelabelConfig
from tasks.refs import Ref
from tasks.stage import StageContext, fetch
from tasks.teachers import fetch_others


def load_labels(
    context: StageContext, teacher: Ref, others: tuple[Ref, ...], labels: tuple[Ref, ...], config: RelabelConfig
) -> LabelSource:
    """Return what the training reads: shards, mapped where they lie on this machine, or the teachers."""
    if config.storage == "none":
        network = fetch(context, teacher, NetworkRecord)
        return Teaching(network, config.batch_statistics, fetch_others(context, others))
    return [fetch(context, ref, LabelShard) for ref in labels]


def replay_identity(config: RelabelConfig) -> dict[str, Any]:
    """Return what of relabelling the key of a training holds: the replay, since stored labels enter by their digest.

    Labels that are not stored have none: all that determines them enters instead, the teacher's digest aside, which is
    an input in any case.
    """
    replay = config.identity(read=set(ReplayConfig.model_fields))
    if config.storage != "none":
        return {"replay": replay}
    unread = {*ReplayConfig.model_fields, "top", "epochs_per_shard"}
    return {"replay": replay, "labels": {"version": VERSION, **config.identity(unread=unread)}}
