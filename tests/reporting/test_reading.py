"""How figures are put into words, and what is kept out of a report."""

from __future__ import annotations

import math
from typing import get_args

import pytest

from cudd_core.data.label_forms import Storage
from cudd_core.records import TIERS
from cudd_core.reporting import reading
from cudd_core.reporting.reading import Score


def test_every_tier_has_words() -> None:
    assert tuple(reading.TIERS) == TIERS


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0.0, "0.0\u00a0s"),
        (0.02, "< 0.1\u00a0s"),
        (4.2, "4.2\u00a0s"),
        (59.97, "1\u00a0min\u00a000\u00a0s"),
        (754.0, "12\u00a0min\u00a034\u00a0s"),
        (3599.7, "1\u00a0h\u00a000\u00a0min"),
        (11100.0, "3\u00a0h\u00a005\u00a0min"),
    ],
)
def test_duration(seconds: float | None, words: str) -> None:
    assert reading.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0\u00a0B"), (1023, "1023\u00a0B"), (1536, "1.5\u00a0KiB"), (2**20 - 1, "1.0\u00a0MiB")]
)
def test_size(count: int, words: str) -> None:
    assert reading.size(count) == words


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://alice:secret@host:5000/base?token=abc#x", "http://host:5000/base"),
        ("sqlite:////home/x/mlflow.db", "sqlite:////home/x/mlflow.db"),
        ("postgresql://u:p@db/mlflow", "postgresql://db/mlflow"),
        ("mlflow-artifacts:/1/ab/set", "mlflow-artifacts:/1/ab/set"),
        ("http://[bad", "(unreadable address)"),
        (None, ""),
    ],
)
def test_addresses_lose_credentials(uri: str | None, shown: str) -> None:
    assert reading.address(uri) == shown


def test_scores_leave_out_what_was_not_measured() -> None:
    summary = {
        "accuracy": {
            "teacher": 0.9,
            "zeta": {"a": {"mean": 0.1, "n": 1}},
            "random": {"a": {"mean": 0.5, "std": 0.0, "n": 1}, "b": {"mean": None}, "c": {"mean": math.nan}},
            "distilled": {"a": {"mean": 0.6, "std": 0.01, "values": [0.59, 0.61]}},
            "sre2l": None,
        }
    }
    assert reading.scores(summary) == {
        "distilled": {"a": Score(0.6, 0.01, 2, (0.59, 0.61))},
        "random": {"a": Score(0.5, None, 1, ())},
        "zeta": {"a": Score(0.1, None, 1, ())},
    }


def test_spread_of_one_network_is_not_zero_but_absent() -> None:
    assert reading.spread(Score(0.681, 0.003, 3, ())) == "68.1 ± 0.3"
    assert reading.spread(Score(0.532, None, 1, ())) == "53.2"


def test_seeds_are_found_wherever_they_are() -> None:
    config = {"seed": 0, "evaluate": {"seeds": [1, 2], "lr": 0.1}}
    assert reading.seeds(config) == [("seed", "0"), ("evaluate.seeds", "1, 2")]


def test_soft_labels_are_described_as_they_are_stored() -> None:
    def words(label_bytes: int, **relabel: object) -> str:
        return reading.soft_labels({"config": {"relabel": relabel}, "dataset": {"label_bytes": label_bytes}})

    assert words(1536, storage="full", reuse=1) == "1.5\u00a0KiB, all logits in 16 bits"
    assert words(1536, storage="int8", reuse=12) == "1.5\u00a0KiB, all logits in 8 bits, each used 12 times"
    assert words(10, storage="topk-int8", top=5).endswith("the 5 largest logits of each image in 8 bits")
    assert words(0, storage="none").startswith("0\u00a0B, not stored: the teacher")
    assert words(1536) == "1.5\u00a0KiB"  # a run of an earlier version
    hard = {"config": {"evaluation": {"labels": "hard"}}, "dataset": {"label_bytes": 0}}
    assert reading.soft_labels(hard) == "none: the classes alone"
    assert reading.soft_labels({}) == reading.MISSING
    assert set(reading.LABEL_FORMS) == set(get_args(Storage))
