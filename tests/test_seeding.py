"""One seed, many streams."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cudd_core.seeding import derive, host_rng, host_rngs, seeded_construction, torch_rng

PATHS: list[tuple[str | int, ...]] = [
    (),
    ("select",),
    ("select", 1),
    ("select", "1"),
    (1, "select"),
    ("select", 1, 2),
    ("select", 2, 1),
    ("select", 12),
    ("selec", "t", 1),
    ("synthesize", 1),
]


def test_every_part_of_the_path_its_type_and_its_order_count() -> None:
    seeds = {derive(seed, *path) for seed in (0, 1, -1) for path in PATHS}
    assert len(seeds) == 3 * len(PATHS)
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(st.integers(-(2**63), 2**63), st.lists(st.text(max_size=8) | st.integers(), max_size=4))
def test_the_same_path_gives_the_same_seed_and_a_longer_one_another(seed: int, path: list[str | int]) -> None:
    assert derive(seed, *path) == derive(seed, *path)
    assert derive(seed, *path) != derive(seed, *path, 0)
    assert derive(seed, *path) != derive(seed + 1, *path)


def test_streams_are_the_same_everywhere() -> None:
    """Labels and images of finished runs follow from these numbers."""
    assert derive(0, "select", 1) == 1_770_403_264_128_211_308
    assert int(host_rng(0, "select", 1).bit_generator.random_raw()) == 2_215_401_602_395_977_510
    assert int(torch.randint(2**31, (1,), generator=torch_rng(0, "select", 1))) == 550_053_769


def test_neighbouring_streams_are_uncorrelated() -> None:
    draws = np.stack([host_rng(seed, "replay", epoch).random(4000) for seed in (0, 1) for epoch in (0, 1, 2)])
    correlation = np.corrcoef(draws) - np.eye(6)
    assert np.abs(correlation).max() < 0.08  # 5 standard deviations


def weights(seed: int, *path: str | int) -> Tensor:
    with seeded_construction(seed, *path):
        return nn.Linear(5, 3).weight.detach()


def test_one_generator_after_another_draws_what_each_would() -> None:
    """Whatever was left in it from the stream before: half of a word, a part of a block."""
    paths: list[tuple[str | int, ...]] = [("a", 1), ("a", 2), ("b",), ("a", 1)]

    def drawn(rng: np.random.Generator) -> list[float]:
        return [*rng.random(3), rng.beta(1.0, 1.0), *rng.permutation(5), rng.integers(32), rng.standard_normal()]

    assert [drawn(rng) for rng in host_rngs(7, paths)] == [drawn(host_rng(7, *path)) for path in paths]


def test_construction_depends_on_the_stream_and_not_on_the_global_generator() -> None:
    reference = weights(0, "network")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        assert torch.equal(weights(0, "network"), reference)
    assert not torch.equal(weights(1, "network"), reference)
    assert not torch.equal(weights(0, "other network"), reference)


def test_construction_restores_the_global_generator_even_after_an_error() -> None:
    before = torch.get_rng_state()
    weights(0, "network")
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(KeyError), seeded_construction(0):
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)
    weights(0, "network")  # and the lock is free again


def test_construction_in_threads_gives_the_same_weights() -> None:
    expected = [weights(seed, "network") for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda seed: weights(seed, "network"), [*range(8)] * 5))
    assert all(torch.equal(a, b) for a, b in zip(built, expected * 5, strict=True))
