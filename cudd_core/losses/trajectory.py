"""Trajectory matching (Cazenavette et al., CVPR 2022, Eq. 2): where a student arrives, and where the expert was."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def trajectory_distance(
    reached: Mapping[str, Tensor], start: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> Tensor:
    """Return ‖θ̂ − θ_target‖² / ‖θ_start − θ_target‖² over all parameters, a scalar.

    0 where the student arrives exactly, 1 where it never left. Parameters by name, the same names in all three.
    """
    missed = torch.stack([(reached[name] - target[name]).square().sum() for name in target]).sum()
    travelled = torch.stack([(start[name] - target[name]).square().sum() for name in target]).sum()
    return missed / travelled
