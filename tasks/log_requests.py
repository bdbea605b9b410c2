"""Requests that log to an MLflow run: within MLflow's limits, and without passwords."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from tasks.passwords import redact

TAG_BATCH = 100
"""The most parameters, tags or inputs in one request."""
TAG_CHARACTERS = 5000
_BATCH, _PARAM_CHARACTERS = 1000, 6000


def log_requests(
    params: Mapping[str, object], metrics: Iterable[tuple[str, float, int]], tags: Mapping[str, object]
) -> list[dict[str, Any]]:
    """Return arguments of `MlflowClient.log_batch`, one dictionary per request. `metrics`: (name, value, step)."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    batches: tuple[tuple[str, int, list[Any]], ...] = (
        ("metrics", _BATCH, [Metric(name, float(value), now, int(step)) for name, value, step in metrics]),
        ("params", TAG_BATCH, [Param(name, redact(str(value))[:_PARAM_CHARACTERS]) for name, value in params.items()]),
        ("tags", TAG_BATCH, [RunTag(name, value) for name, value in tag_texts(tags).items()]),
    )
    # MLflow limits each kind, and the limit of metrics holds for all kinds together. Tags go last: they announce what
    # was logged.
    requests: list[dict[str, Any]] = [{}]
    for kind, size, items in batches:
        for start in range(0, len(items), size):
            part = items[start : start + size]
            if kind in requests[-1] or sum(map(len, requests[-1].values())) + len(part) > _BATCH:
                requests.append({})
            requests[-1][kind] = part
    return list(filter(None, requests))


def tag_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return values as texts that a run's tags may hold: without passwords and not too long."""
    return {name: redact(str(value))[:TAG_CHARACTERS] for name, value in values.items()}
