"""Classes learnt in steps: what is seen, what is taught, and the last step."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.data.replay import Replay, ReplayConfig
from cudd_core.data.subset import set_of_classes, split_of_classes
from cudd_core.errors import ConfigError
from cudd_core.labelling import TeacherLabels, Teaching
from cudd_core.measurement import measure
from cudd_core.records import NetworkRecord, SyntheticSet
from cudd_core.schedule import learning_steps
from cudd_core.stages.learn_classes import SeenLabels, learn_classes
from cudd_core.stages.train_network import EvaluationConfig, train_network
from cudd_core.training import TrainingConfig

REPLAY = ReplayConfig(flip=False, crop_scale=(0.5, 1.0))
TRAINING = TrainingConfig(epochs=12, batch_size=4, learning_rate=5e-3)
CONFIG = EvaluationConfig(training=TRAINING, temperature=4.0)
ARCH = "convnet2-w8"


def learn(synthetic: SyntheticSet, teacher: NetworkRecord, classes: tuple[int, ...], runtime: Runtime) -> NetworkRecord:
    return learn_classes(synthetic, Teaching(teacher), classes, ARCH, 0, TRAINING, CONFIG, REPLAY, 0, runtime)


# ---- steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "steps"), [(10, 5), (10, 3), (100, 5), (7, 1), (4, 2)])
def test_every_class_comes_once_in_steps_of_equal_size(classes: int, steps: int) -> None:
    seen = learning_steps(classes, steps, seed=0, order=0)
    assert len(seen) == steps and seen[-1] == tuple(range(classes))
    new = [set(now) - set(before) for before, now in zip(((), *seen), seen, strict=False)]
    assert all(set(before) < set(now) for before, now in pairwise(seen))
    sizes = [len(each) for each in new]
    assert sum(sizes) == classes and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    assert all(list(each) == sorted(each) for each in seen)


def test_the_order_follows_from_seed_and_number() -> None:
    orders = [learning_steps(20, 5, seed, order) for seed, order in ((0, 0), (0, 1), (1, 0))]
    assert len(set(orders)) == 3
    assert learning_steps(20, 5, 0, 1) == orders[1]
    # A finer split of the same order: the first half of the classes is the same.
    assert learning_steps(20, 2, 0, 0)[0] == learning_steps(20, 10, 0, 0)[4]


@pytest.mark.parametrize("steps", [0, 6, 11])
def test_a_step_needs_two_classes(steps: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 5"):
        learning_steps(10, steps, 0, 0)


# ---- subsets --------------------------------------------------------------------------------------------------------


def test_a_subset_is_numbered_anew(split: ArraySplit, synthetic: SyntheticSet) -> None:
    view, part = split_of_classes(split, (1, 3)), set_of_classes(synthetic, (1, 3))
    assert view.class_names == part.class_names == ("blue", "dove")
    assert len(view) == 80 and torch.bincount(view.labels).tolist() == [40, 40]
    where = (split.labels == 3).nonzero().flatten()
    assert torch.equal(view.images((view.labels == 1).nonzero().flatten()), split.images(where))
    assert torch.equal(part.images[part.labels == 0], synthetic.images[synthetic.labels == 1])
    assert torch.equal(set_of_classes(synthetic, (0, 1, 2, 3)).images, synthetic.images)
    assert split_of_classes(split, (1, 2)).digest != view.digest


# ---- learning -------------------------------------------------------------------------------------------------------


def test_the_teacher_s_answer_is_its_own_given_that_the_class_has_been_seen(
    synthetic: SyntheticSet, teacher: NetworkRecord, runtime: Runtime
) -> None:
    seen = (0, 2)
    replay = Replay(set_of_classes(synthetic, seen), teacher.spec, REPLAY, 4, 0, runtime)
    (views,) = replay.views(1)
    every = list(TeacherLabels(Teaching(teacher), runtime).of(1, views))
    taught = list(SeenLabels(Teaching(teacher), seen, runtime).of(1, views))
    assert taught[0].dtype == torch.float16
    whole, part = torch.cat(every).float().softmax(1), torch.cat(taught).float().softmax(1)
    given = whole[:, seen] / whole[:, seen].sum(1, keepdim=True)
    torch.testing.assert_close(part, given, atol=1e-5, rtol=1e-4)


def test_the_last_step_is_the_evaluation_s_own_network(
    synthetic: SyntheticSet, teacher: NetworkRecord, runtime: Runtime
) -> None:
    own = train_network(synthetic, Teaching(teacher), teacher.spec, ARCH, 0, CONFIG, REPLAY, 0, runtime)
    learnt = learn(synthetic, teacher, (0, 1, 2, 3), runtime)
    assert learnt.spec == own.spec and learnt.history == own.history
    assert all(torch.equal(learnt.state[name], own.state[name]) for name in own.state)


def test_a_network_knows_the_seen_classes_alone(
    synthetic: SyntheticSet, teacher: NetworkRecord, test_split: ArraySplit, runtime: Runtime
) -> None:
    learnt = learn(synthetic, teacher, (0, 3), runtime)
    assert learnt.spec.class_names == ("amber", "dove") and learnt.state["head.weight"].shape[0] == 2
    measured = measure(learnt, split_of_classes(test_split, (0, 3)), runtime)
    assert measured.n == 40 and measured.accuracy > 0.7
    # Images of classes to come are not looked at.
    tampered = SyntheticSet(
        images=torch.where((synthetic.labels == 1)[:, None, None, None], 0, synthetic.images),
        labels=synthetic.labels,
        slices=synthetic.slices,
        sources=synthetic.sources,
        curricula=synthetic.curricula,
        class_names=synthetic.class_names,
    )
    assert learn(tampered, teacher, (0, 3), runtime).history == learnt.history
