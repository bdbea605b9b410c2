"""The labels of a training in its key: those that were stored, or all that the teacher gives them again by."""

from __future__ import annotations

from typing import Any

from cudd_core.data.replay import ReplayConfig
from cudd_core.stages.relabel import VERSION, RelabelConfig


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
