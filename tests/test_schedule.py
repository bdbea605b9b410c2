"""Curricula, blocks and shards: Sec. III-A and its worked examples."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cudd_core.errors import ConfigError
from cudd_core.schedule import ScheduleConfig, curriculum_boundaries, cut

GRID = [5 << j for j in range(6)]


def logarithmic(ipc: int) -> tuple[int, ...]:
    return curriculum_boundaries(ScheduleConfig(ipc=ipc))


@pytest.mark.parametrize(
    ("ipc", "boundaries"),
    [
        (1, (1,)),
        (4, (4,)),
        (5, (5,)),
        (9, (9,)),
        (10, (5, 10)),
        (20, (5, 10, 20)),
        (50, (5, 10, 20, 50)),
        (100, (5, 10, 20, 40, 100)),
        (200, (5, 10, 20, 40, 80, 200)),
    ],
)
def test_worked_examples(ipc: int, boundaries: tuple[int, ...]) -> None:
    assert logarithmic(ipc) == boundaries


def test_number_of_curricula_and_doubling_for_every_ipc() -> None:
    for ipc in range(1, 201):
        boundaries = logarithmic(ipc)
        assert len(boundaries) == max(0, math.floor(math.log2(ipc / 5))) + 1, ipc
        assert boundaries[-1] == ipc
        assert list(boundaries[:-1]) == GRID[: len(boundaries) - 1], ipc
        assert all(a < b for a, b in zip((0, *boundaries), boundaries, strict=False)), ipc


def test_a_boundary_on_the_grid_is_a_prefix_of_every_run_of_at_least_twice_its_size() -> None:
    for small in GRID:
        for large in range(2 * small, 201):
            assert logarithmic(large)[: len(logarithmic(small))] == logarithmic(small), (small, large)


@given(st.integers(1, 5000), st.integers(1, 60))
def test_any_first_step_doubles_until_the_end(ipc: int, step: int) -> None:
    *grid, last = curriculum_boundaries(ScheduleConfig(ipc=ipc, step=step))
    assert last == ipc
    assert grid == [step * 2**j for j in range(len(grid))]
    assert not grid or 2 * grid[-1] <= ipc
    assert ipc < 2 * step or 4 * grid[-1] > ipc  # no further doubling was left out


@given(st.integers(1, 200), st.integers(1, 60))
def test_uniform_rises_by_its_step(ipc: int, step: int) -> None:
    boundaries = curriculum_boundaries(ScheduleConfig(ipc=ipc, kind="uniform", step=step))
    strides = [b - a for a, b in zip((0, *boundaries), boundaries, strict=False)]
    assert boundaries[-1] == ipc and len(boundaries) == math.ceil(ipc / step)
    assert all(stride == step for stride in strides[:-1]) and 1 <= strides[-1] <= step


@pytest.mark.parametrize("boundaries", [(7,), (1, 7), (2, 3, 7)])
def test_explicit_boundaries_are_taken_as_they_are(boundaries: tuple[int, ...]) -> None:
    assert curriculum_boundaries(ScheduleConfig(ipc=7, kind="explicit", boundaries=boundaries)) == boundaries


@pytest.mark.parametrize("boundaries", [(), (0, 10), (-1, 10), (5, 5, 10), (6, 5, 10), (5, 9), (5, 11), (5, 10, 10)])
def test_explicit_boundaries_that_do_not_rise_to_ipc_are_refused(boundaries: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.boundaries .* schedule\.ipc = 10"):
        curriculum_boundaries(ScheduleConfig(ipc=10, kind="explicit", boundaries=boundaries))


@pytest.mark.parametrize("field", ["ipc", "step", "block_size", "slices_per_shard"])
def test_nothing_may_be_zero(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        ScheduleConfig(**{field: 0})


@given(st.integers(0, 500), st.integers(1, 500), st.integers(1, 500))
def test_cutting_keeps_order_and_loses_nothing(first: int, count: int, size: int) -> None:
    whole = range(first, first + count)
    pieces = cut(whole, size)
    assert [number for piece in pieces for number in piece] == list(whole)
    assert all(len(piece) == size for piece in pieces[:-1]) and 1 <= len(pieces[-1]) <= size
