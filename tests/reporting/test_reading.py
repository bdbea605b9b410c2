"""How figures are put into words, and what is kept out of a report."""

from __future__ import annotations

from typing import get_args

import pytest

from cudd_core.baselines import Configured
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
    ],
)
def test_addresses_lose_credentials(uri: str, shown: str) -> None:
    assert reading.address(uri) == shown


def test_scores_are_those_of_sets_in_the_order_of_methods() -> None:
    accuracy = {
        "teacher": 0.9,
        "teacher_2": 0.8,
        "random": {"a": {"mean": 0.5, "std": 0.0, "n": 1, "values": [0.5]}},
        "distilled": {"a": {"mean": 0.6, "std": 0.01, "n": 2, "values": [0.59, 0.61]}},
    }
    found = reading.scores(accuracy)
    assert found == {
        "distilled": {"a": Score(0.6, 0.01, 2, (0.59, 0.61))},
        "random": {"a": Score(0.5, None, 1, (0.5,))},
    }
    assert list(found) == ["distilled", "random"]


def test_every_set_is_a_method_with_words() -> None:
    assert set(reading.METHODS) == {"distilled", "selection", *get_args(Configured)}
    assert [reading.method_name(name) for name in ("kcenter", "teacher")] == ["k-center", "teacher"]


def test_spread_of_one_network_is_not_zero_but_absent() -> None:
    assert reading.spread(Score(0.681, 0.003, 3, ())) == "68.1 ± 0.3"
    assert reading.spread(Score(0.532, None, 1, ())) == "53.2"


def test_seeds_are_found_wherever_they_are() -> None:
    config = {"seed": 0, "evaluation": {"seeds": 3, "lr": 0.1}, "teacher": {"seed": None}}
    assert reading.seeds(config) == [("seed", "0"), ("evaluation.seeds", "3")]
    more = [{"arch": "convnet3", "seed": 1}, {"seed": None}, {"seed": 2}]
    assert reading.seeds({"other_teachers": more, "evaluation": {"archs": ["seed"], "seeds": 3}}) == [
        *(("other_teachers.0.seed", "1"), ("other_teachers.2.seed", "2"), ("evaluation.seeds", "3"))
    ]


def test_soft_labels_are_described_as_they_are_stored() -> None:
    def words(label_bytes: int, storage: str, reuse: int = 1, labels: str = "soft") -> str:
        relabel = {"storage": storage, "top": 5, "reuse": reuse}
        config = {"relabel": relabel, "evaluation": {"labels": labels}}
        return reading.soft_labels({"config": config, "dataset": {"label_bytes": label_bytes}})

    assert words(1536, "full") == "1.5\u00a0KiB, all logits in 16 bits"
    assert words(1536, "int8", reuse=12) == "1.5\u00a0KiB, all logits in 8 bits, each used 12 times"
    assert words(10, "topk-int8").endswith("the 5 largest logits of each image in 8 bits")
    assert words(0, "none").startswith("0\u00a0B, not stored: the teacher")
    assert words(0, "full", labels="hard") == "none: the classes alone"
    assert set(reading.LABEL_FORMS) == set(get_args(Storage))
