"""How a training's labels enter its key: as stored labels, or as everything from which they are computed again."""

from __future__ import annotations

from typing import Any

from cudd_core.data.replay import ReplayConfig
from cudd_core.stages.relabel import VERSION, RelabelConfig


def replay_identity(config: RelabelConfig) -> dict[str, Any]:
    """Return the part of the relabelling configuration that enters a training's key.

    Stored labels enter by their digests, so only the replay is needed. Labels that are not stored have no digest:
    everything that determines them enters instead, except the teacher's digest, which is an input anyway.
    """
    replay = config.identity(read=set(ReplayConfig.model_fields))
    if config.storage != "none":
        return {"replay": replay}
    unread = {*ReplayConfig.model_fields, "top", "epochs_per_shard"}
    return {"replay": replay, "labels": {"version": VERSION, **config.identity(unread=unread)}}
