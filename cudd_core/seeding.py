"""One seed, many independent streams: (seed, stage, curriculum, block, slice, batch, …) → a generator.

Parameters of augmentations are drawn on the host with NumPy's Philox, so they are the same on every device;
only tensors that must be filled with noise use a `torch.Generator`. No code draws from a global generator.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

_GLOBAL_TORCH_RNG = threading.Lock()


def derive(seed: int, *path: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and on every element of `path`, and on their order.

    Example:
        >>> derive(0, "select", 1) == derive(0, "select", 1)
        True
    """
    text = "\x1f".join([str(int(seed)), *(f"{type(part).__name__}:{part}" for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def host_rng(seed: int, *path: str | int) -> np.random.Generator:
    """Return a NumPy generator for the stream `path` of `seed`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *path)))


def host_rngs(seed: int, paths: Iterable[tuple[str | int, ...]]) -> Iterator[np.random.Generator]:
    """Yield `host_rng(seed, *path)` for each path. It is one generator, reset for every path: use it before the next.

    Creating a generator takes longer than drawing the augmentation of a small batch.
    """
    stream = np.random.Philox(key=0)
    fresh, generator = stream.state, np.random.Generator(stream)
    for path in paths:
        fresh["state"]["key"][0] = derive(seed, *path)
        stream.state = fresh
        yield generator


def torch_rng(seed: int, *path: str | int) -> torch.Generator:
    """Return a CPU `torch.Generator` for the stream `path` of `seed`."""
    return torch.Generator().manual_seed(derive(seed, *path))


@contextmanager
def seeded_construction(seed: int, *path: str | int) -> Iterator[None]:
    """Seed torch's global CPU generator for the body, one thread at a time, and restore it afterwards.

    Layers draw their initial weights from the global generator and accept no other; this is the only place
    that touches it.
    """
    with _GLOBAL_TORCH_RNG, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *path))
        yield
