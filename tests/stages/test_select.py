"""T_j ⊂ R(θ*) ∩ W(φ_{j-1}) \\ T_{1:j-1}, and what follows when that pool runs dry."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.errors import DataError
from cudd_core.records import TIERS, Features, NetworkRecord, Selection, Verdicts
from cudd_core.stages.classify import classify
from cudd_core.stages.select import GEOMETRIC, SelectConfig, check_class_sizes, select

CURRICULUM = SelectConfig()
NONE_USED = torch.empty(0, dtype=torch.int64)


@dataclass
class Case:
    """Random labels, verdicts of both networks and what was used, with enough images left for `count` slices."""

    labels: Tensor
    classes: int
    teacher: Verdicts
    student: Verdicts
    used: Tensor
    count: int

    def free(self, label: int) -> set[int]:
        return set((self.labels == label).nonzero().flatten().tolist()) - set(self.used.tolist())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    classes = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    labels = torch.arange(classes).repeat(draw(st.integers(2, 12)))
    labels = labels[torch.randperm(len(labels), generator=generator)]

    def verdicts(share: float) -> Verdicts:
        right = torch.rand(len(labels), generator=generator) < share
        return Verdicts(torch.arange(len(labels)), torch.where(right, labels, (labels + 1) % classes - 7).int())

    teacher, student = verdicts(draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))), verdicts(draw(st.floats(0, 1)))
    used = torch.randperm(len(labels), generator=generator)[: draw(st.integers(0, len(labels) // 2))]
    case = Case(labels, classes, teacher, student, used, 1)
    most = min(len(case.free(label)) for label in range(classes))
    case.count = draw(st.integers(0, most))
    return case


def run(case: Case, config: SelectConfig = CURRICULUM, seed: int = 0, first: int = 5) -> Selection:
    slices = range(first, first + case.count)
    return select(case.labels, range(case.classes), slices, case.teacher, case.student, case.used, config, seed)


def tier_of(case: Case, index: int) -> str:
    right = case.teacher.predicted[index] == case.labels[index]
    known = case.student.predicted[index] == case.labels[index]
    if not right:
        return "student_right" if known else "wrong"
    return "right" if known else "right_and_wrong"


def teacher_is_right(case: Case, index: int) -> bool:
    return tier_of(case, index) in ("right_and_wrong", "right")


every_case = settings(max_examples=60, deadline=None)


@every_case
@given(cases(), st.sampled_from(["curriculum", "correct", "random"]))
def test_without_replacement_and_every_image_in_its_own_class(case: Case, policy: str) -> None:
    selection = run(case, SelectConfig.model_validate({"policy": policy}))
    assert selection.indices.shape == selection.tiers.shape == (case.count, case.classes)
    chosen = selection.indices.flatten().tolist()
    assert len(set(chosen)) == len(chosen)
    assert not set(chosen) & set(case.used.tolist())
    assert torch.equal(case.labels[selection.indices], selection.classes.expand(case.count, -1))
    assert selection.first_slice == 5 and selection.classes.tolist() == list(range(case.classes))


@every_case
@given(cases())
def test_tiers_are_emptied_in_order(case: Case) -> None:
    selection = run(case)
    order = ["right_and_wrong", "right", "wrong", "student_right"]
    for column in range(case.classes):
        tiers = [tier_of(case, i) for i in selection.indices[:, column].tolist()]
        assert tiers == [TIERS[t] for t in selection.tiers[:, column].tolist()]
        assert tiers == sorted(tiers, key=order.index)
        available = Counter(tier_of(case, i) for i in case.free(column))
        left = case.count
        for tier in order:
            assert tiers.count(tier) == min(left, available[tier])
            left -= tiers.count(tier)


@every_case
@given(cases())
def test_tier_counts_add_up(case: Case) -> None:
    selection = run(case)
    counts = selection.tier_counts()
    assert sum(counts.values()) == case.count * case.classes
    assert counts == {name: sum(TIERS[t] == name for t in selection.tiers.flatten().tolist()) for name in TIERS}


@every_case
@given(cases(), st.integers(0, 5))
def test_the_draw_does_not_depend_on_the_block(case: Case, cut: int) -> None:
    """Also when each block brings the verdicts and the earlier selections of its own classes alone."""
    whole = run(case)
    columns = []
    for classes in (range(0, min(cut, case.classes)), range(min(cut, case.classes), case.classes)):
        inside = torch.tensor([int(label) in classes for label in case.labels])
        own = [Verdicts(v.indices[inside], v.predicted[inside]) for v in (case.teacher, case.student)]
        used = case.used[inside[case.used]]
        part = select(case.labels, classes, range(5, 5 + case.count), own[0], own[1], used, CURRICULUM, 0)
        columns.append(part.indices)
    assert torch.equal(torch.cat(columns, 1), whole.indices)


@every_case
@given(cases())
def test_policies(case: Case) -> None:
    correct = run(case, SelectConfig(policy="correct"))
    for column in range(case.classes):
        right = [teacher_is_right(case, i) for i in correct.indices[:, column].tolist()]
        assert right == sorted(right, reverse=True)
        assert sum(right) == min(case.count, sum(teacher_is_right(case, i) for i in case.free(column)))
    deaf = select(
        case.labels, range(case.classes), range(5, 5 + case.count), case.teacher, None, case.used,
        SelectConfig(policy="correct"), 0,
    )  # fmt: skip
    assert torch.equal(deaf.indices, correct.indices)  # whatever the student says
    random = run(case, SelectConfig(policy="random"))
    assert random.tier_counts()["any"] == case.count * case.classes
    blind = select(
        case.labels, range(case.classes), range(5, 5 + case.count), None, None, case.used,
        SelectConfig(policy="random"), 0,
    )  # fmt: skip
    assert torch.equal(blind.indices, random.indices)


def large(share_right: float = 1.0) -> Case:
    labels = torch.arange(10).repeat(100)
    everything = Verdicts(torch.arange(1000), labels.int())
    nothing = Verdicts(torch.arange(1000), torch.full((1000,), -1, dtype=torch.int32))
    return Case(labels, 10, everything, nothing, NONE_USED, 5)


def test_the_same_seed_gives_the_same_images_and_another_one_others() -> None:
    case = large()
    assert torch.equal(run(case).indices, run(case).indices)
    assert not torch.equal(run(case).indices, run(case, seed=1).indices)
    assert not torch.equal(run(case).indices, run(case, first=6).indices)
    positions = run(case).indices // 10
    assert not torch.equal(positions[:, 0], positions[:, 1])  # classes are drawn apart


def test_policies_draw_apart() -> None:
    """Where every image is in the first pool, the random baseline would otherwise have CUDD's own originals."""
    case = large()
    policies = [SelectConfig.model_validate({"policy": name}) for name in ("curriculum", "correct", "random")]
    one, other, random = (run(case, policy).indices for policy in policies)
    assert not torch.equal(one, other) and not torch.equal(one, random) and not torch.equal(other, random)


def test_two_blocks_of_five_classes_equal_one_of_ten() -> None:
    case = large()
    halves = [
        select(case.labels, classes, range(5, 10), case.teacher, case.student, NONE_USED, CURRICULUM, 0)
        for classes in (range(0, 5), range(5, 10))
    ]
    assert torch.equal(torch.cat([half.indices for half in halves], 1), run(case).indices)


def test_every_image_of_a_pool_is_drawn_equally_often() -> None:
    case = large()
    drawn = torch.zeros(1000)
    for seed in range(200):
        drawn[run(case, seed=seed).indices.flatten()] += 1
    expected = 200 * 5 / 100
    assert float(((drawn - expected).square() / expected).mean()) < 1.2  # χ² over its degrees of freedom, near 0.95


def test_curricula_use_up_a_class_and_then_it_is_named() -> None:
    labels = torch.tensor([0, 1] * 7)
    everything = Verdicts(torch.arange(14), labels.int())
    used = NONE_USED
    for slices in (range(0, 3), range(3, 7)):
        chosen = select(labels, range(2), slices, everything, everything, used, CURRICULUM, 0)
        used = torch.cat([used, chosen.indices.flatten()])
    assert sorted(used.tolist()) == list(range(14))
    with pytest.raises(DataError, match=r"Class 0 has 0 unused images but 1 more are needed.*schedule\.ipc"):
        select(labels, range(2), range(7, 8), everything, everything, used, CURRICULUM, 0)


def test_a_class_with_too_few_images_is_named_before_any_work() -> None:
    labels = torch.tensor([0] * 9 + [1] * 4 + [2] * 6)
    check_class_sizes(labels, ("a", "b", "c"), 4)
    with pytest.raises(DataError, match=r"schedule\.ipc = 5, but class 'b' has only 4 images"):
        check_class_sizes(labels, ("a", "b", "c"), 5)
    with pytest.raises(DataError, match=r"class 'd' has only 0 images"):
        check_class_sizes(labels, ("a", "b", "c", "d"), 1)


def test_with_real_networks_the_pools_are_what_their_answers_say(
    teacher: NetworkRecord, student: NetworkRecord, split: ArraySplit, runtime: Runtime
) -> None:
    theirs, ours = (classify(network, split, range(4), runtime) for network in (teacher, student))
    right = theirs.predicted == split.labels
    first = select(split.labels, range(4), range(0, 5), theirs, None, NONE_USED, CURRICULUM, 0)
    assert bool(right[first.indices].all())  # the initial S_1 is classified correctly
    assert first.tier_counts()["right_and_wrong"] == 20
    used = first.indices.flatten()
    second = select(split.labels, range(4), range(5, 10), theirs, ours, used, CURRICULUM, 0)
    inside = (second.tiers == TIERS.index("right_and_wrong")).flatten()
    chosen = second.indices.flatten()
    assert bool(right[chosen[inside]].all()) and bool((ours.predicted != split.labels)[chosen[inside]].all())
    assert int(inside.sum()) >= 5 and not set(chosen.tolist()) & set(used.tolist())


# ---- by geometry ----------------------------------------------------------------------------------------------------


def scattered(labels: Tensor, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(torch.arange(len(labels)), torch.randn(len(labels), 3, generator=generator))


def by_geometry(policy: str, features: Features, labels: Tensor, slices: range, used: Tensor, seed: int = 0) -> Tensor:
    config = SelectConfig.model_validate({"policy": policy})
    chosen = select(labels, range(int(labels.max()) + 1), slices, None, None, used, config, seed, features)
    assert chosen.tier_counts()["any"] == chosen.indices.numel()
    return chosen.indices


@pytest.mark.parametrize("policy", GEOMETRIC)
def test_geometry_is_that_of_each_class_alone(policy: str) -> None:
    labels = torch.arange(4).repeat(12)
    features = scattered(labels)
    chosen = by_geometry(policy, features, labels, range(5), NONE_USED)
    for label in range(4):
        members = (labels == label).nonzero().flatten()
        assert torch.equal(chosen[:, label], members[GEOMETRIC[policy](features.features[members], 5)])
        # Also when a block brings its own class alone.
        block = Features(members, features.features[members])
        config = SelectConfig.model_validate({"policy": policy})
        own = select(labels, range(label, label + 1), range(5), None, None, NONE_USED, config, 0, block)
        assert torch.equal(own.indices[:, 0], chosen[:, label])


@pytest.mark.parametrize("policy", GEOMETRIC)
def test_geometry_draws_nothing_and_goes_on_from_earlier_curricula(policy: str) -> None:
    labels = torch.arange(3).repeat(10)
    features = scattered(labels)
    whole = by_geometry(policy, features, labels, range(7), NONE_USED)
    assert torch.equal(by_geometry(policy, features, labels, range(7), NONE_USED, seed=1), whole)
    first = by_geometry(policy, features, labels, range(3), NONE_USED)
    second = by_geometry(policy, features, labels, range(3, 7), first.flatten())
    assert torch.equal(torch.cat([first, second]), whole)
