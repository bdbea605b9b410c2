"""Cross-entropy with the classes of mixed images."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from cudd_core.losses.mixed_label import mixed_label

LABELS, PARTNERS = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 1, 0, 0])


def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, dtype=torch.float64, generator=generator).requires_grad_()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_it_is_cross_entropy_with_the_mixed_distribution(share: float) -> None:
    target = share * one_hot(LABELS, 3) + (1 - share) * one_hot(PARTNERS, 3)
    torch.testing.assert_close(
        mixed_label(logits(), LABELS, PARTNERS, torch.tensor(share, dtype=torch.float64)),
        cross_entropy(logits(), target.double()),
    )


def test_an_unmixed_image_has_its_own_class_alone() -> None:
    assert torch.equal(mixed_label(logits(), LABELS, PARTNERS, torch.tensor(1.0)), cross_entropy(logits(), LABELS))
