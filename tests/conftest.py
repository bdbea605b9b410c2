"""Order of all tests: slow ones first, so that parallel workers end at about the same time."""

from __future__ import annotations

import pytest

WITH_SERVERS = ("flows", "tasks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders whose tests run Prefect, MLflow, Ray or S3."""
    items.sort(key=lambda item: item.path.parent.name not in WITH_SERVERS)
