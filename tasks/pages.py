"""Artifacts shown in Prefect's pages. A run continues without them while the server is down."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

_log = logging.getLogger("cudd.pages")


def show(create: Callable[..., Any], *, description: str, **fields: Any) -> UUID | None:
    """Return the id of the artifact that `create`, one of Prefect's functions, makes or updates; None if that fails.

    Prefect tries five times, for a minute in all if nothing answers, and then fails the task that called it. An
    artifact is not worth that; instead, a warning says that it is missing.
    """
    try:
        artifact: UUID = create(description=description, **fields)
        return artifact
    except Exception as error:
        _log.warning("Prefect's pages lack %r, the run goes on: %s: %s", description, type(error).__name__, error)
        return None
