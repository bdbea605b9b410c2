from __future__ import annotations

import pytest

from cudd_core.compute.cpu import threads


@pytest.fixture(params=["torch's threads", "threads of our own"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch has no OpenMP that can be asked, as on macOS, Python's threads share the images."""
    if request.param == "threads of our own":
        monkeypatch.setattr(threads, "torch_s_threads", lambda: None)
    elif threads.torch_s_threads() is None:
        pytest.skip("torch has no OpenMP that can be asked")
