"""Classes of a slice in an order of their own."""

from __future__ import annotations

import torch

from cudd_core.objectives.batches import permuted_classes

CLASSES = torch.arange(20, 60)


def test_every_slice_keeps_its_classes_in_another_order() -> None:
    order = permuted_classes(range(3, 7), CLASSES, 0)
    assert order.shape == (160,)
    rows = order.view(4, 40) - 40 * torch.arange(4)[:, None]
    assert all(sorted(row.tolist()) == list(range(40)) for row in rows)
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_a_slice_s_order_is_its_own_whichever_task_makes_it() -> None:
    whole = permuted_classes(range(3, 7), CLASSES, 0)
    assert torch.equal(permuted_classes(range(5, 7), CLASSES, 0), whole[80:] - 80)
    assert torch.equal(permuted_classes(range(3, 7), CLASSES, 0), whole)
    assert not torch.equal(permuted_classes(range(3, 7), CLASSES, 1), whole)
    assert not torch.equal(permuted_classes(range(3, 7), CLASSES + 40, 0), whole)
