from __future__ import annotations

import sys

import pytest
import torch

from cudd_core.compute.cpu.threads import in_parts, torch_s_threads


@pytest.mark.skipif(sys.platform != "linux", reason="Linux builds of torch have GNU's OpenMP")
def test_on_linux_torch_s_own_threads_are_found() -> None:
    assert torch_s_threads() is not None


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize(
    ("threads", "parts"),
    [(1, [(0, 7)]), (2, [(0, 4), (4, 7)]), (5, [(0, 2), (2, 4), (4, 6), (6, 7)]), (9, [(i, i + 1) for i in range(7)])],
)
def test_parts_come_back_in_order(threads: int, parts: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert in_parts(lambda start, stop: (start, stop), 7) == parts


@pytest.mark.usefixtures("pool")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_goes_wrong_in_a_thread_is_raised(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is tried once, and an interrupt is not lost in a region that it cannot leave."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    tried = list[tuple[int, int]]()

    def some(start: int, stop: int) -> None:
        tried.append((start, stop))
        if start == 0:
            raise error("as planned")

    with pytest.raises(error, match="as planned"):
        in_parts(some, 3)
    assert set(tried) <= {(0, 2), (2, 3)} and (0, 2) in tried
