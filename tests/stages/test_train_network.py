"""Fresh networks, last epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.data.replay import ReplayConfig
from cudd_core.errors import Cancelled, DataError
from cudd_core.labelling import Teaching
from cudd_core.measurement import measure, measure_together
from cudd_core.progress import CONTINUED
from cudd_core.records import NetworkRecord, SoftLabels, SyntheticSet
from cudd_core.stages.relabel import relabel
from cudd_core.stages.train_network import EvaluationConfig, train_network
from cudd_core.training import TrainingConfig

EPOCHS, BATCH = 30, 4
REPLAY = ReplayConfig(flip=False, crop_scale=(0.5, 1.0))
CONFIG = EvaluationConfig(
    training=TrainingConfig(epochs=EPOCHS, batch_size=BATCH, learning_rate=5e-3), temperature=4.0, checkpoint_every=1
)


@pytest.fixture(scope="module")
def labels(teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime) -> list[SoftLabels]:
    return [relabel(Teaching(teacher), synthetic, range(EPOCHS), BATCH, REPLAY, 0, runtime)]


@pytest.fixture
def run(teacher: NetworkRecord, synthetic: SyntheticSet, labels: list[SoftLabels], runtime: Runtime) -> Any:
    def run(arch: str = "convnet2-w8", number: int = 0, seed: int = 0, **options: Any) -> NetworkRecord:
        return train_network(synthetic, labels, teacher.spec, arch, number, CONFIG, REPLAY, seed, runtime, **options)

    return run


def same(one: NetworkRecord, other: NetworkRecord) -> bool:
    return one.spec == other.spec and all(torch.equal(one.state[name], other.state[name]) for name in one.state)


def test_the_network_is_the_last_epoch_s(run: Any, test_split: ArraySplit, runtime: Runtime) -> None:
    network = run()
    assert len(network.history) == EPOCHS and network.history[-1]["loss"] < network.history[0]["loss"]
    measured = measure(network, test_split, runtime)
    assert measured.n == 80 and measured.accuracy > 0.6


def test_no_test_images_are_no_accuracy(run: Any, test_split: ArraySplit, runtime: Runtime) -> None:
    nothing = ArraySplit(test_split.pixels[:0], test_split.labels[:0], test_split.class_names)
    for measured in (measure, lambda network, *rest: measure_together([network], *rest)):
        with pytest.raises(DataError, match="no test images"):
            measured(run(), nothing, runtime)


def test_networks_differ_by_their_number_and_only_by_it(run: Any) -> None:
    first, second, again = run(number=0), run(number=1), run(number=0)
    assert first.history == again.history != second.history
    assert same(first, again) and not same(first, second)


def test_an_architecture_that_the_distillation_never_saw(run: Any, teacher: NetworkRecord) -> None:
    network = run("convnet1-w16")
    assert network.spec.arch == "convnet1-w16"
    # It is fed as the teacher is.
    assert (network.spec.mean, network.spec.std) == (teacher.spec.mean, teacher.spec.std)


def test_a_killed_training_goes_on_to_the_same_network(run: Any, tmp_path: Path) -> None:
    def stop(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == 7:
            raise Cancelled("stop")

    undisturbed = run()
    with pytest.raises(Cancelled):
        run(checkpoints=tmp_path, progress=stop)
    told: list[Mapping[str, float]] = []
    resumed = run(checkpoints=tmp_path, progress=lambda *report: told.append(report[2]))
    assert CONTINUED in told[0], "it began anew"
    assert same(resumed, undisturbed) and resumed.history == undisturbed.history


def test_hard_labels_teach_the_classes_and_read_no_soft_ones(
    teacher: NetworkRecord, synthetic: SyntheticSet, test_split: ArraySplit, runtime: Runtime
) -> None:
    hard = CONFIG.model_copy(update={"labels": "hard"})

    def accuracy(of: SyntheticSet) -> float:
        network = train_network(of, [], teacher.spec, "convnet2-w8", 0, hard, REPLAY, 0, runtime)
        return measure(network, test_split, runtime).accuracy

    # With every class renamed to the next one, the network learns just that.
    assert accuracy(synthetic) > 0.6
    assert accuracy(replace(synthetic, labels=(synthetic.labels + 1) % 4)) < 0.3


def test_hard_labels_repeat_the_epochs_that_soft_ones_would(
    teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    """With weights that hardly move, an epoch's loss tells which batches it saw."""
    still = TrainingConfig(optimizer="sgd", epochs=4, batch_size=BATCH, learning_rate=1e-12, weight_decay=0)
    hard = EvaluationConfig(labels="hard", training=still)
    losses = []
    for reuse in (1, 2):
        replay = REPLAY.model_copy(update={"reuse": reuse})
        network = train_network(synthetic, [], teacher.spec, "convnet2-w8", 0, hard, replay, 0, runtime)
        losses.append([row["loss"] for row in network.history])
    distinct, repeated = losses
    assert len(set(distinct)) == 4
    assert repeated == pytest.approx(distinct[:2] * 2, rel=1e-6)


def test_defaults_are_the_paper_s() -> None:
    config = EvaluationConfig()
    training = config.training
    assert (config.seeds, config.temperature) == (3, 20.0)
    assert (training.epochs, training.batch_size, training.learning_rate, training.weight_decay) == (
        1000,
        16,
        1e-3,
        0.01,
    )
