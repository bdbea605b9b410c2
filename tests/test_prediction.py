from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cudd_core import prediction
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.models.registry import build_network
from cudd_core.prediction import head_inputs, predict


@pytest.fixture
def runtime() -> Runtime:
    return Runtime(ComputeConfig())


class Brightest(nn.Module):
    """Answers the class of the largest of the first pixels, so that every image has its own known answer."""

    def forward(self, images: Tensor) -> Tensor:
        assert not self.training
        return images.flatten(1)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_answers_come_in_the_order_of_the_indices(
    batch_size: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "PREDICTED_TOGETHER", batch_size)
    indices = torch.tensor([5, 3, 3, 0, 8, 1, 2, 7, 6])

    def one_hot(i: Tensor) -> Tensor:
        return torch.eye(9)[i].view(-1, 1, 3, 3)

    done: list[tuple[int, int]] = []
    answers = predict(Brightest(), one_hot, indices, runtime, progress=lambda d, n, _: done.append((d, n)))
    assert answers.dtype == torch.int32 and answers.tolist() == indices.tolist()
    assert done[-1] == (9, 9)


@pytest.mark.parametrize("asked", [predict, head_inputs])
def test_nothing_is_kept_of_a_batch_but_its_answers(asked: Any, runtime: Runtime) -> None:
    """A tensor of its own for each would lie between the activations, and glibc could not use their room again."""
    network, pixels, counts = build_network("convnet2-w4", 3, 3, 8, seed=0), torch.zeros(2000, 3, 8, 8), list[int]()

    def count(*_: object) -> None:
        counts.append(sum(issubclass(type(each), Tensor) for each in gc.get_objects()))

    named = (network,) if asked is predict else (network, "convnet2-w4")
    found = asked(*named, lambda indices: pixels[indices], torch.arange(2000), runtime, progress=count)
    assert len(found) == 2000 and len(counts) == 8
    assert len(set(counts[1:])) == 1


def test_no_images_no_answers(runtime: Runtime) -> None:
    answers = predict(Brightest(), lambda i: torch.zeros(len(i), 1, 3, 3), torch.empty(0, dtype=torch.int64), runtime)
    assert answers.shape == (0,) and answers.dtype == torch.int32
