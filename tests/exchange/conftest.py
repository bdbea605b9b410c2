from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cudd_core.records import SyntheticSet

EXAMPLES = Path(__file__).parents[2] / "examples"

MakeSet = Callable[..., SyntheticSet]


def build_set(
    classes: tuple[str, ...] = ("cat", "dog", "emu"), ipc: int = 2, channels: int = 3, size: int = 9, seed: int = 0
) -> SyntheticSet:
    """Noise with every column filled differently, in canonical order, of two curricula."""
    k = len(classes)
    n = k * ipc
    rng = torch.Generator().manual_seed(seed)
    slices = torch.arange(n) // k
    return SyntheticSet(
        images=torch.randint(0, 256, (n, channels, size, size), generator=rng, dtype=torch.uint8),
        labels=torch.arange(n) % k,
        slices=slices,
        sources=torch.randint(-1, 1000, (n,), generator=rng),
        curricula=1 + (slices >= (ipc + 1) // 2).long(),
        class_names=classes,
    )


@pytest.fixture
def make_set() -> MakeSet:
    return build_set


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of examples, importable."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("soft_labels", "plain_tensors", "convert_teacher", "tensors_to_folder"):
        sys.modules.pop(name, None)
    return EXAMPLES
