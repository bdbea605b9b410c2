"""The normalised distance of trajectory matching."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cudd_core.losses.trajectory import trajectory_distance


def parameters(weight: float, bias: float) -> dict[str, Tensor]:
    return {"weight": torch.full((2, 3), weight), "bias": torch.full((4,), bias)}


def test_closed_form() -> None:
    start, target, reached = parameters(0.0, 1.0), parameters(1.0, 3.0), parameters(0.5, 4.0)
    # Six weights missed by a half and four biases by one; six weights travelled one and four biases two.
    assert float(trajectory_distance(reached, start, target)) == pytest.approx((6 * 0.25 + 4 * 1) / (6 * 1 + 4 * 4))


def test_nothing_is_left_on_arrival_and_everything_before_the_first_step() -> None:
    start, target = parameters(0.2, 1.0), parameters(1.0, -3.0)
    assert float(trajectory_distance(target, start, target)) == 0
    assert float(trajectory_distance(start, start, target)) == 1


def test_the_scale_of_the_way_does_not_count() -> None:
    start, target, reached = parameters(0.2, 1.0), parameters(1.0, -3.0), parameters(0.7, 0.5)
    larger = [{name: 1000 * value for name, value in each.items()} for each in (reached, start, target)]
    torch.testing.assert_close(trajectory_distance(*larger), trajectory_distance(reached, start, target))
