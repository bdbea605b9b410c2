"""Fresh networks, last epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from cudd_core.data.memory import ArraySplit
from cudd_core.data.replay import ReplayConfig
from cudd_core.errors import Cancelled
from cudd_core.measurement import measure
from cudd_core.records import Accuracy, Evaluation, NetworkRecord, SoftLabels, SyntheticSet
from cudd_core.runtime import Runtime
from cudd_core.stages import evaluate as stage
from cudd_core.stages.evaluate import EvaluationConfig, evaluate
from cudd_core.stages.relabel import relabel
from cudd_core.training import TrainingConfig

EPOCHS, BATCH = 30, 4
REPLAY = ReplayConfig(flip=False, crop_scale=(0.5, 1.0))
CONFIG = EvaluationConfig(
    training=TrainingConfig(epochs=EPOCHS, batch_size=BATCH, learning_rate=5e-3), temperature=4.0, checkpoint_every=1
)


@pytest.fixture(scope="module")
def labels(teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime) -> list[SoftLabels]:
    return [relabel(teacher, synthetic, range(EPOCHS), BATCH, REPLAY, 0, runtime)]


@pytest.fixture
def run(
    teacher: NetworkRecord, synthetic: SyntheticSet, labels: list[SoftLabels], test_split: ArraySplit, runtime: Runtime
) -> Any:
    def run(arch: str = "convnet2-w8", number: int = 0, seed: int = 0, **options: Any) -> Evaluation:
        return evaluate(
            synthetic, labels, teacher.spec, test_split, arch, number, CONFIG, REPLAY, seed, runtime, **options
        )

    return run


def test_the_accuracy_is_the_last_epoch_s_measured_once(
    run: Any, test_split: ArraySplit, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[NetworkRecord] = []

    def watched(network: NetworkRecord, split: ArraySplit, where: Runtime) -> Accuracy:
        measured.append(network)
        return measure(network, split, where)

    monkeypatch.setattr(stage, "measure", watched)
    evaluation = run()
    assert len(measured) == 1 and len(measured[0].history) == EPOCHS
    assert evaluation.history == measured[0].history
    assert measure(measured[0], test_split, runtime) == Accuracy(evaluation.accuracy, len(test_split))
    assert (evaluation.arch, evaluation.seed, evaluation.n) == ("convnet2-w8", 0, 80)
    assert evaluation.accuracy > 0.6 and evaluation.history[-1]["loss"] < evaluation.history[0]["loss"]


def test_networks_differ_by_their_number_and_only_by_it(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    states: list[dict[str, torch.Tensor]] = []

    def watched(network: NetworkRecord, split: ArraySplit, where: Runtime) -> Accuracy:
        states.append(network.state)
        return Accuracy(0.5, 1)

    monkeypatch.setattr(stage, "measure", watched)
    first, second, again = run(number=0), run(number=1), run(number=0)
    assert first.history == again.history != second.history
    assert all(torch.equal(states[0][k], states[2][k]) for k in states[0])
    assert not torch.equal(states[0]["head.weight"], states[1]["head.weight"])


def test_an_architecture_that_the_distillation_never_saw(run: Any) -> None:
    evaluation = run("convnet1-w16")
    assert evaluation.arch == "convnet1-w16" and 0 <= evaluation.accuracy <= 1


def test_a_killed_evaluation_goes_on_to_the_same_result(run: Any, tmp_path: Path) -> None:
    def stop(done: int, total: int, metrics: Mapping[str, float]) -> None:
        if done == 7:
            raise Cancelled("stop")

    undisturbed = run()
    with pytest.raises(Cancelled):
        run(checkpoints=tmp_path, progress=stop)
    assert run(checkpoints=tmp_path) == undisturbed


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
