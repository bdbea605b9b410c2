"""What is shown in Prefect's pages. A run goes on without it while the server is away."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

_log = logging.getLogger("cudd.pages")


def show(create: Callable[..., Any], *, description: str, **fields: Any) -> UUID | None:
    """Return the artifact that `create`, one of Prefect's functions, makes or updates; None where it is not taken.

    Prefect tries five times, a minute in all while nothing answers, and then fails the task that it is called in. What
    was to be shown is not worth that; a warning says that it is lacking.
    """
    try:
        artifact: UUID = create(description=description, **fields)
        return artifact
    except Exception as error:
        _log.warning("Prefect's pages lack %r, the run goes on: %s: %s", description, type(error).__name__, error)
        return None
