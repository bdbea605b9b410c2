"""Order of all tests: slow ones first, so that parallel workers end at the same time. Fixtures of many folders."""

from __future__ import annotations

import sys

import pytest

WITH_SERVERS = ("flows", "tasks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders whose tests run Prefect, MLflow, Ray or S3."""
    items.sort(key=lambda item: item.path.parent.name not in WITH_SERVERS)


@pytest.fixture(autouse=True)
def _nobody_asked_for_a_stop() -> None:
    """A flow that fails or is cancelled leaves that asked for, until the next flow of its process begins."""
    if progress := sys.modules.get("tasks.progress"):
        progress.stop_requested.clear()


@pytest.fixture
def prompt_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Save at every occasion, whatever it takes."""
    monkeypatch.setattr("cudd_core.pace.MOST", 1.0)
