"""What benchmarks compute on: random images, whose values cost the same as any other's."""

from __future__ import annotations

import torch

from cudd_core.records import NetworkSpec, SyntheticSet


def random_set(
    arch: str, n: int, classes: int, size: int, generator: torch.Generator
) -> tuple[NetworkSpec, SyntheticSet]:
    """Return a spec of networks for images of 3 × size × size, and n such images at random, of every class in turn."""
    names = tuple(f"class {k}" for k in range(classes))
    numbers = torch.arange(n)
    synthetic = SyntheticSet(
        images=torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8),
        labels=numbers % classes,
        slices=numbers // classes,
        sources=numbers,
        curricula=torch.ones_like(numbers),
        class_names=names,
    )
    return NetworkSpec(arch, classes, 3, size, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), names), synthetic
