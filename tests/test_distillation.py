"""What networks are trained to on soft labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from cudd_core.distillation import LossConfig
from cudd_core.losses.logit_error import logit_error
from cudd_core.losses.mixed_label import mixed_label
from cudd_core.losses.soft_label import soft_label

GENERATOR = torch.Generator().manual_seed(0)
TARGETS = (
    torch.randn(6, 4, generator=GENERATOR).half(),
    torch.tensor([0, 1, 2, 3, 0, 1]),
    torch.tensor([1, 1, 0, 2, 3, 0]),
    torch.tensor(0.7, dtype=torch.float64),
)
CONFIGS = [
    LossConfig(temperature=4.0),
    LossConfig(temperature=4.0, hard_label_weight=0.5),
    LossConfig(loss="mse"),
    LossConfig(loss="mse", hard_label_weight=0.025),
]


def student() -> Tensor:
    return torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_terms_add_up() -> None:
    logits = student()
    kl = soft_label(logits, TARGETS[0], 4.0)
    mse = logit_error(logits, TARGETS[0])
    hard = mixed_label(logits, *TARGETS[1:])
    expected = [kl, kl + 0.5 * hard, mse, mse + 0.025 * hard]
    for config, value in zip(CONFIGS, expected, strict=True):
        torch.testing.assert_close(config.value(logits, *TARGETS), value)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_gradients_are_those_of_finite_differences(config: LossConfig) -> None:
    torch.autograd.gradcheck(lambda logits: config.value(logits, *TARGETS), student().requires_grad_())


def test_the_temperature_counts_only_where_it_is_used() -> None:
    warm, cold = (LossConfig(temperature=t) for t in (20.0, 1.0))
    assert warm.loss_identity() == {"temperature": 20.0} != cold.loss_identity()
    identities = [each.model_copy(update={"loss": "mse"}).loss_identity() for each in (warm, cold)]
    assert identities == [{"loss": "mse"}] * 2
    assert LossConfig(hard_label_weight=0.1).loss_identity() == {"temperature": 20.0, "hard_label_weight": 0.1}


@pytest.mark.parametrize("fields", [{"loss": "ce"}, {"hard_label_weight": -1}, {"temperature": 0}])
def test_what_makes_no_loss_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LossConfig(**fields)
