"""Eq. 6 over the pixels of S_j."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy, mse_loss

from cudd_core.compute.runtime import Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.data.normalizer import Normalizer
from cudd_core.errors import Cancelled, ConfigError, ModelError
from cudd_core.models.committee import restore_committee
from cudd_core.models.registry import build_network, restore_network
from cudd_core.objectives.batches import batch_positions
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.cudd import CuddObjective
from cudd_core.objectives.interface import Batch, Terms
from cudd_core.records import NetworkRecord, NetworkSpec, Selection, Shard, Verdicts
from cudd_core.stages.select import SelectConfig, select
from cudd_core.stages.synthesize import synthesize

CONFIG = SynthesisConfig(iterations=6, batch_size=4, learning_rate=0.05, jitter=1, log_every=2)
PLAIN = CONFIG.model_copy(update={"crop_scale": (1.0, 1.0), "flip": False, "jitter": 0})


def changed(config: SynthesisConfig = CONFIG, **fields: Any) -> SynthesisConfig:
    return SynthesisConfig.model_validate(config.model_dump() | fields)


@pytest.fixture
def make(
    teacher: NetworkRecord, student: NetworkRecord, selection: Selection, split: ArraySplit, runtime: Runtime
) -> Any:
    """Synthesise slices of `selection`; keywords replace any argument."""

    def make(config: SynthesisConfig = CONFIG, **given: Any) -> Shard:
        return synthesize(
            given.get("teacher", teacher),
            given.get("student", student),
            given.get("selection", selection),
            given.get("slices", range(3)),
            split,
            2,
            config,
            given.get("seed", 0),
            runtime,
            **{name: given[name] for name in ("progress", "others") if name in given},
        )

    return make


Call = tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What the objective was given and what it answered, call by call."""
    seen: list[Call] = []
    original = CuddObjective.terms

    def watched(self: CuddObjective, synthetic: Tensor, originals: Tensor | None, labels: Tensor) -> Terms:
        terms = original(self, synthetic, originals, labels)
        shown = torch.empty(0) if originals is None else originals.clone()
        seen.append((synthetic.detach().clone(), shown, labels, {k: v.detach() for k, v in terms.items()}))
        return terms

    monkeypatch.setattr(CuddObjective, "terms", watched)
    return seen


@contextmanager
def objective(
    teacher: NetworkRecord, student: NetworkRecord | None, config: SynthesisConfig, runtime: Runtime
) -> Iterator[CuddObjective]:
    network = None if student is None else runtime.network(restore_network(student))
    teachers = restore_committee([teacher])
    runtime.network(teachers)
    with ExitStack() as stack:
        yield CuddObjective(teachers, network, config, runtime, stack)


def mean_distance(a: Shard, b: Shard) -> float:
    return float((a.images.float() - b.images.float()).abs().mean())


# The whole stage


def test_another_objective_is_refused_by_the_stage_of_eq_6(make: Any) -> None:
    mtt = SynthesisConfig(objective="mtt")
    with pytest.raises(ConfigError, match=r"objective = mtt.*Eq\. 6.*match_trajectories"):
        make(mtt)
    assert make(mtt.model_copy(update={"enabled": False})).history == ()


def test_switched_off_it_keeps_the_originals(make: Any, split: ArraySplit, selection: Selection) -> None:
    shard = make(changed(enabled=False))
    sources = selection.indices.flatten()
    assert torch.equal(shard.images, split.images(sources)) and torch.equal(shard.sources, sources)
    assert shard.history == ()


@pytest.mark.parametrize("enabled", [True, False])
def test_labels_slices_and_sources_are_slice_major(
    enabled: bool, make: Any, split: ArraySplit, selection: Selection
) -> None:
    later = replace(selection, first_slice=5)
    shard = make(changed(enabled=enabled), selection=later, slices=range(6, 8))
    assert shard.labels.tolist() == [0, 1, 2, 3] * 2
    assert shard.slices.tolist() == [6] * 4 + [7] * 4
    assert torch.equal(shard.sources, selection.indices[1:3].flatten())
    assert torch.equal(split.labels[shard.sources], shard.labels)
    assert shard.images.dtype == torch.uint8 and shard.images.shape == (8, 3, 8, 8) and shard.curriculum == 2


def test_pixels_survive_a_synthesis_that_does_not_move_them(make: Any, split: ArraySplit, selection: Selection) -> None:
    shard = make(changed(learning_rate=1e-9, iterations=3))
    assert torch.equal(shard.images, split.images(selection.indices.flatten()))


def test_the_initial_images_are_classified_as_their_originals_were(
    make: Any, calls: list[Call], teacher: NetworkRecord, verdicts: Verdicts, split: ArraySplit, selection: Selection
) -> None:
    make(changed(PLAIN, iterations=1))
    network = restore_network(teacher)
    begun = torch.cat([synthetic for synthetic, *_ in calls])
    predicted = network(begun).argmax(1)
    sources = selection.indices.flatten()
    assert torch.equal(predicted, verdicts.predicted[sources].long())
    assert torch.equal(predicted, split.labels[sources])  # true by selection


def test_s_and_t_get_one_and_the_same_augmentation(make: Any, calls: list[Call], teacher: NetworkRecord) -> None:
    for crops in ("batch", "image"):
        calls.clear()
        make(changed(crops=crops, learning_rate=1e-12))
        assert len(calls) == 3 * CONFIG.iterations
        assert all(torch.equal(synthetic, originals) for synthetic, originals, *_ in calls)
        same_views = [torch.equal(a[1], b[1]) for a, b in pairwise(calls)]
        assert not any(same_views)  # a new view every iteration


@pytest.mark.parametrize("crops", ["batch", "image"])
def test_one_view_for_the_batch_or_one_per_image(
    crops: str, make: Any, calls: list[Call], split: ArraySplit, selection: Selection, teacher: NetworkRecord
) -> None:
    """With one original in every place, images of a batch are equal exactly where they share the view."""
    one = replace(selection, indices=torch.full_like(selection.indices, int(selection.indices[0, 0])))
    make(changed(crops=crops), selection=one)
    spread = [float((originals - originals[:1]).abs().max()) for _, originals, *_ in calls]
    assert (max(spread) < 1e-5) if crops == "batch" else (min(spread) > 0.1)


@pytest.mark.parametrize("crops", ["batch", "image"])
def test_annealed_crops_begin_with_the_whole_image_and_end_as_if_nothing_were_annealed(
    crops: str, make: Any, calls: list[Call], split: ArraySplit, selection: Selection, teacher: NetworkRecord
) -> None:
    def views(anneal: str) -> list[Tensor]:
        calls.clear()
        still = changed(PLAIN, crop_scale=(0.08, 1.0), crops=crops, crop_anneal=anneal, iterations=70)
        make(still, slices=range(1))
        return [originals for _, originals, *_ in calls]

    plain, annealed = views("off"), views("linear")
    whole = Normalizer.of(teacher.spec)(split.images(selection.indices[0]))
    torch.testing.assert_close(annealed[0], whole)
    assert not torch.allclose(plain[0], whole)
    assert torch.equal(annealed[-1], plain[-1])
    # The smaller the area, the further a view is from the image: on average, so over the two halves.
    distance = [float((view - whole).abs().mean()) for view in annealed]
    assert sum(distance[:35]) < sum(distance[35:])


def test_patches_stand_for_the_originals_where_images_begin_and_in_the_regularisation(
    make: Any, calls: list[Call], split: ArraySplit, selection: Selection
) -> None:
    shard = make(changed(PLAIN, init="patches", learning_rate=1e-9, iterations=2, batch_size=4))
    assert all(torch.equal(synthetic, originals) for synthetic, originals, *_ in calls[::2])
    assert torch.equal(shard.sources, selection.indices.flatten())
    originals = split.images(shard.sources)
    moved = (shard.images != originals).flatten(1).any(1)
    assert bool(moved.all())
    # A quarter of the pixels is the image's own original's; all are of its class's originals.
    for image, label in zip(shard.images, shard.labels, strict=True):
        theirs = split.images(selection.indices[:, int(label)]).unfold(2, 4, 1).unfold(3, 4, 1)
        for cell in (image[:, y : y + 4, x : x + 4] for y in (0, 4) for x in (0, 4)):
            assert bool((theirs == cell[:, None, None]).all(5).all(4).all(1).any())


def test_permuted_classes_share_other_batches_and_images_stay_in_their_places(
    make: Any, calls: list[Call], split: ArraySplit, selection: Selection
) -> None:
    config = changed(batch_size=2, class_order="permuted", learning_rate=1e-9, iterations=1)
    whole = make(config)
    pairs = {frozenset(labels.tolist()) for _, _, labels, _ in calls}
    assert all(len(pair) == 2 for pair in pairs) and not pairs <= {frozenset({0, 1}), frozenset({2, 3})}
    assert torch.equal(whole.images, split.images(selection.indices.flatten()))
    moving = changed(batch_size=2, class_order="permuted")
    parts = [make(moving, slices=slices) for slices in (range(0, 1), range(1, 3))]
    assert torch.equal(torch.cat([part.images for part in parts]), make(moving).images)


def test_statistics_of_the_pool_take_the_place_of_the_running_ones(
    batch: tuple[Tensor, Tensor, Tensor], teacher: NetworkRecord, runtime: Runtime
) -> None:
    config = changed(weight_ce=0.0, weight_reg=0.0, weight_bn=0.3)
    with ExitStack() as stack:
        teachers = restore_committee([teacher])
        runtime.network(teachers)
        plain = CuddObjective(teachers, None, config, runtime, stack)
        (statistics,) = plain.statistics
        running = [(m.clone(), v.clone()) for m, v in statistics.running]
        plain_value = plain.terms(*batch)["bn"]
        teachers(batch[0])
        own = statistics.collect()
        same = CuddObjective(teachers, None, config, runtime, stack, [running])
        at_home = CuddObjective(teachers, None, config, runtime, stack, [own])
        assert torch.equal(same.terms(*batch)["bn"], plain_value) and float(plain_value) > 0
        assert float(at_home.terms(*batch)["bn"]) == 0  # exactly where the batch's own statistics are the target


def test_another_teacher_changes_the_images_and_none_leaves_them(
    make: Any, student: NetworkRecord, teacher: NetworkRecord
) -> None:
    alone, none, beside = (make(others=others) for others in ((), [], [student]))
    assert torch.equal(alone.images, none.images) and alone.history == none.history
    assert mean_distance(alone, beside) > 0.01
    assert {name for row in beside.history for name in row} == {name for row in alone.history for name in row}
    patches = [make(changed(init="patches", iterations=1), others=others) for others in ((), [student])]
    assert not torch.equal(patches[0].images, patches[1].images)


def test_later_curricula_have_fewer_iterations() -> None:
    config = changed(iterations=1000, iteration_decay=0.5)
    assert [config.in_curriculum(j).iterations for j in (1, 2, 3, 20)] == [1000, 500, 250, 1]
    assert CONFIG.in_curriculum(7) == CONFIG
    # The first curriculum is the one of a recipe without decay, so it is found again.
    assert config.in_curriculum(1) == changed(iterations=1000)


def test_each_term_its_weight_and_every_augmentation_change_the_images(make: Any) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"weight_ce": 0.0},
        {"weight_ce": 3.0},
        {"weight_bn": 0.0},
        {"weight_bn": 1.0},
        {"first_bn_factor": 100.0},
        {"weight_reg": 0.0},
        {"weight_reg": 20.0},
        {"weight_adv": 0.0},
        {"weight_adv": 10.0},
        {"regularization": "feature"},
        {"crops": "image"},
        {"crop_scale": (0.5, 1.0)},
        {"crop_anneal": "linear"},
        {"init": "patches"},
        {"batch_size": 2},
        {"batch_size": 2, "class_order": "permuted"},
        {"crop_anneal": "cosine"},
        {"flip": False},
        {"jitter": 0},
        {"weight_decay": 0.5},
        {"init": "noise"},
        {"iterations": 7},
        {"learning_rate": 0.1},
    ]
    images = [make(changed(**({"iterations": 8} | variant))) for variant in variants]
    for i, a in enumerate(images):
        for j, b in enumerate(images[:i]):
            assert mean_distance(a, b) > 0, (variants[i], variants[j])
    assert mean_distance(images[0], make(changed(iterations=8), student=None)) > 0


def test_the_teacher_s_answer_decides_where_the_student_is_asked(make: Any, selection: Selection) -> None:
    """With every label wrong the adversarial term is silent, unless it is told not to ask the teacher."""
    mislabelled = replace(selection, classes=selection.classes.roll(1))
    config = changed(PLAIN, learning_rate=1e-6, weight_adv=5.0)
    asked = make(config, selection=mislabelled)
    assert asked.history and all(row["adv"] == 0 for row in asked.history)
    unasked = make(changed(config, teacher_correct_only=False), selection=mislabelled)
    assert unasked.history and all(row["adv"] > 0 for row in unasked.history)
    moving = changed(config, learning_rate=0.05, iterations=1, teacher_correct_only=False)
    silent = make(changed(moving, teacher_correct_only=True), selection=mislabelled)
    assert mean_distance(make(moving, selection=mislabelled), silent) > 0


def test_without_a_student_the_adversarial_weight_does_not_matter(make: Any) -> None:
    with_weight = make(student=None)
    without = make(changed(weight_adv=0.0))
    assert torch.equal(with_weight.images, without.images)
    assert with_weight.history and all("adv" not in row for row in with_weight.history)
    assert all("adv" in row for row in make().history)


def test_every_iterate_stays_in_the_range_of_pixels(make: Any, calls: list[Call], teacher: NetworkRecord) -> None:
    shard = make(changed(PLAIN, learning_rate=5.0, weight_reg=0.0))
    normalizer = Normalizer.of(teacher.spec)
    views = torch.cat([synthetic for synthetic, *_ in calls])
    pixels = (views * normalizer.std + normalizer.mean) * 255
    assert float(pixels.min()) > -1e-3 and float(pixels.max()) < 255 + 1e-3
    ends = (shard.images == 0) | (shard.images == 255)
    assert float(ends.float().mean()) > 0.2  # steps this large do reach the ends


def test_adam_starts_with_steps_of_the_learning_rate_and_ends_with_none(make: Any, calls: list[Call]) -> None:
    make(changed(PLAIN, learning_rate=0.01, iterations=40), slices=range(1))
    steps = [(b[0] - a[0]).abs() for a, b in pairwise(calls)]
    assert float(steps[0].median()) == pytest.approx(0.01, rel=0.01)
    assert float(steps[-1].max()) < 0.01 * 0.05


def test_every_iterate_follows_by_adam_s_formula(
    make: Any, calls: list[Call], teacher: NetworkRecord, student: NetworkRecord, runtime: Runtime
) -> None:
    """β 0.5 and 0.9, ε 1e-8, L2 in the gradient, cosine to 0."""
    config = changed(PLAIN, learning_rate=0.01, iterations=5, weight_decay=0.001)
    make(config, slices=range(1))
    iterates = [synthetic for synthetic, *_ in calls]
    _, originals, labels, _ = calls[0]
    momentum = square = torch.zeros_like(iterates[0])
    with objective(teacher, student, config, runtime) as eq6:
        for step, (now, then) in enumerate(pairwise(iterates), start=1):
            at = now.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(torch.stack(list(eq6.terms(at, originals, labels).values())).sum(), at)
            gradient = gradient + 0.001 * now
            momentum = 0.5 * momentum + 0.5 * gradient
            square = 0.9 * square + 0.1 * gradient.square()
            rate = 0.01 * 0.5 * (1 + math.cos(math.pi * (step - 1) / 5))
            size = momentum / (1 - 0.5**step) / ((square / (1 - 0.9**step)).sqrt() + 1e-8)
            expected = Normalizer.of(teacher.spec).clamp_(now - rate * size)
            torch.testing.assert_close(then, expected, atol=1e-4, rtol=0)


def test_batches_see_views_of_their_own(make: Any, calls: list[Call], selection: Selection) -> None:
    """Two batches of one slice, and two of the same classes: with one original in every place, only views differ."""
    one = replace(selection, indices=torch.full_like(selection.indices, int(selection.indices[0, 0])))
    make(changed(batch_size=2, iterations=1), selection=one, slices=range(2))
    views = [originals for _, originals, *_ in calls]
    assert len(views) == 4
    assert not any(torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


@pytest.mark.parametrize("crops", ["batch", "image"])
def test_a_descent_that_goes_on_sees_the_views_that_are_left(
    crops: str, batch: tuple[Tensor, Tensor, Tensor], teacher: NetworkRecord, runtime: Runtime
) -> None:
    images, _, labels = batch
    with objective(teacher, None, changed(crops=crops, iterations=20), runtime) as eq6:
        descent = eq6.descent(Batch(images, labels, (0, "synthesize", 0, 0)))
        whole, rest = list(descent.inputs(0)), list(descent.inputs(13))
    assert (len(whole), len(rest)) == (20, 7)
    assert all(
        torch.equal(a, b)
        for left, right in zip(whole[13:], rest, strict=True)
        for a, b in zip(left, right, strict=True)
    )


def test_the_loss_falls(make: Any) -> None:
    for student in ("absent", "present"):
        given = {"student": None} if student == "absent" else {}
        history = make(changed(PLAIN, iterations=40, log_every=39, learning_rate=0.02), **given).history
        losses = [sum(v for k, v in row.items() if k not in ("iteration", "slice", "class")) for row in history]
        assert len(losses) == 6
        assert all(end < begin for begin, end in zip(losses[0::2], losses[1::2], strict=True))


def test_a_synthesis_that_diverges_is_refused(make: Any, teacher: NetworkRecord) -> None:
    """Every pixel would be 0."""
    broken = replace(teacher, state={name: value * torch.nan for name, value in teacher.state.items()})
    with pytest.raises(ConfigError, match="diverged: at iteration 0 ce is nan"):
        make(teacher=broken)


def test_history_has_the_logged_iterations_of_every_batch(make: Any) -> None:
    history = make(changed(log_every=4)).history
    assert [(row["slice"], row["class"], row["iteration"]) for row in history] == [
        (float(s), 0.0, float(i)) for s in range(3) for i in (0, 4, 5)
    ]
    assert {"ce", "bn", "reg", "adv"} <= history[0].keys()


def test_progress_runs_to_the_end_and_can_stop_the_work(make: Any) -> None:
    seen: list[tuple[int, int]] = []
    make(progress=lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (18, 18) and [done for done, _ in seen] == sorted({done for done, _ in seen})

    def stop(done: int, total: int, metrics: object) -> None:
        raise Cancelled("stop")

    with pytest.raises(Cancelled):
        make(progress=stop)


def test_noise_init_has_no_originals_unless_it_is_drawn_to_them(make: Any, selection: Selection) -> None:
    sre2l = changed(init="noise", weight_reg=0.0, weight_adv=0.0)
    shard = make(sre2l)
    assert bool((shard.sources == -1).all()) and shard.labels.tolist() == [0, 1, 2, 3] * 3
    assert torch.equal(make(changed(init="noise")).sources, selection.indices.flatten())
    assert torch.equal(make(changed(weight_reg=0.0)).sources, selection.indices.flatten())


def test_noise_is_standard_normal_and_independent_of_the_originals(
    make: Any, calls: list[Call], selection: Selection
) -> None:
    sre2l = changed(PLAIN, init="noise", weight_reg=0.0, weight_adv=0.0, iterations=1)
    first = make(sre2l)
    begun = torch.cat([synthetic for synthetic, *_ in calls])
    assert abs(float(begun.mean())) < 0.07 and abs(float(begun.std()) - 1) < 0.05  # 2304 numbers
    assert not torch.equal(begun[:4], begun[4:8])
    other = make(sre2l, selection=replace(selection, indices=selection.indices.flip(0)))
    assert torch.equal(first.images, other.images)


# Seeds and blocks


def test_the_same_seed_gives_the_same_bytes_and_leaves_global_generators_alone(make: Any) -> None:
    before = torch.get_rng_state()
    first, again, other = make(), make(), make(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.images, again.images) and first.history == again.history
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("init", ["real", "noise"])
def test_shards_and_blocks_do_not_matter_where_batches_agree(
    init: str, make: Any, split: ArraySplit, verdicts: Verdicts
) -> None:
    config = changed(batch_size=2, init=init)
    whole = make(config)
    by_slice = [make(config, slices=slices) for slices in (range(0, 2), range(2, 3))]
    assert torch.equal(torch.cat([shard.images for shard in by_slice]), whole.images)
    used = torch.empty(0, dtype=torch.int64)
    for classes in (range(0, 2), range(2, 4)):
        block = select(split.labels, classes, range(3), verdicts, None, used, SelectConfig(), 0)
        shard = make(config, selection=block)
        inside = (whole.labels >= classes.start) & (whole.labels < classes.stop)
        assert torch.equal(shard.images, whole.images[inside])
        assert torch.equal(shard.sources, whole.sources[inside])


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 80))
def test_batches_partition_the_images_with_classes_evenly_mixed(slices: int, classes: int, batch_size: int) -> None:
    batches = list(batch_positions(slices, classes, batch_size))
    assert torch.cat(batches).tolist() == list(range(slices * classes))
    for positions in batches:
        assert 1 <= len(positions) <= batch_size
        counts = Counter((positions % classes).tolist())
        assert len(set(counts.values())) == 1  # each class of a batch equally often
        if batch_size < classes:
            assert max(counts.values()) == 1 and len(set((positions // classes).tolist())) == 1
        else:
            assert len(counts) == classes


@pytest.mark.parametrize(
    ("slices", "classes", "batch_size", "sizes"),
    [
        (2, 10, 10, [10, 10]),
        (5, 10, 25, [20, 20, 10]),
        (5, 10, 100, [50]),
        (2, 10, 4, [4, 4, 2, 4, 4, 2]),
        (2, 100, 100, [100, 100]),
    ],
)
def test_sizes_of_batches(slices: int, classes: int, batch_size: int, sizes: list[int]) -> None:
    assert [len(positions) for positions in batch_positions(slices, classes, batch_size)] == sizes


def test_remainders_are_synthesised(make: Any, split: ArraySplit, selection: Selection) -> None:
    shard = make(changed(batch_size=3, learning_rate=0.1))
    originals = split.images(selection.indices.flatten())
    moved = (shard.images != originals).flatten(1).float().mean(1)
    assert len(moved) == 12 and float(moved.min()) > 0.3


# The objective


@pytest.fixture
def batch(split: ArraySplit, teacher: NetworkRecord) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised images, slightly other originals, and labels."""
    images = Normalizer.of(teacher.spec)(split.images(torch.arange(8)))
    originals = images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return images, originals, split.labels[:8].clone()


@pytest.mark.parametrize(
    ("weights", "with_student", "asked"),
    [
        ({"weight_ce": 0, "weight_bn": 0}, False, 0),
        ({"weight_ce": 0, "weight_bn": 0}, True, 1),  # L_adv asks where the teacher is right
        ({"weight_ce": 0, "weight_bn": 0, "teacher_correct_only": False}, True, 0),
        ({"weight_ce": 0, "weight_reg": 0}, False, 1),
        ({"weight_bn": 0, "weight_reg": 0}, False, 1),
    ],
)
def test_passes_that_no_term_needs_are_not_made(
    weights: dict[str, Any],
    with_student: bool,
    asked: int,
    batch: tuple[Tensor, Tensor, Tensor],
    teacher: NetworkRecord,
    student: NetworkRecord,
    runtime: Runtime,
) -> None:
    images, originals, labels = batch
    passes = list[int]()
    with objective(teacher, student if with_student else None, changed(**weights), runtime) as eq6:
        (member,) = eq6.teachers.members
        member.register_forward_hook(lambda *_: passes.append(1))
        eq6.terms(images, originals if weights.get("weight_reg") != 0 else None, labels)
    assert len(passes) == asked


def test_the_terms_are_those_of_eq_6(
    batch: tuple[Tensor, Tensor, Tensor], teacher: NetworkRecord, student: NetworkRecord, runtime: Runtime
) -> None:
    images, originals, labels = batch
    labels[:3] = (labels[:3] + 1) % 4  # wrong for the teacher, so masked
    config = changed(weight_ce=0.5, weight_bn=0.2, weight_reg=3.0, weight_adv=0.7)
    with objective(teacher, student, config, runtime) as eq6:
        terms = eq6.terms(images, originals, labels)
    ours, theirs = restore_network(teacher), restore_network(student)
    logits = ours(images)
    right = logits.argmax(1) == labels
    assert right.tolist() == [False] * 3 + [True] * 5
    p = theirs(images).softmax(1)[torch.arange(8), labels]
    inputs, x = [], images
    for layer in ours.features:
        if isinstance(layer, torch.nn.BatchNorm2d):
            inputs.append((layer, x))
        x = layer(x)
    bn = sum(
        factor
        * ((x.mean((0, 2, 3)) - layer.running_mean).norm() + (x.var((0, 2, 3), False) - layer.running_var).norm())
        for factor, (layer, x) in zip((10, 1), inputs, strict=True)
    )
    expected = {
        "ce": 0.5 * cross_entropy(logits, labels),
        "bn": 0.2 * bn,
        "reg": 3.0 * mse_loss(images, originals),
        "adv": 0.7 * -((1 - p).log() * right).sum() / 8,
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "with_student", "names"),
    [
        ({}, True, {"ce", "bn", "reg", "adv"}),
        ({}, False, {"ce", "bn", "reg"}),
        ({"weight_adv": 0.0}, True, {"ce", "bn", "reg"}),
        ({"weight_ce": 0.0}, True, {"bn", "reg", "adv"}),
        ({"weight_bn": 0.0}, True, {"ce", "reg", "adv"}),
        ({"weight_reg": 0.0}, True, {"ce", "bn", "adv"}),
        ({"weight_reg": 0.0, "regularization": "feature"}, False, {"ce", "bn"}),
    ],
)
def test_terms_of_weight_zero_are_absent(
    fields: dict[str, Any], with_student: bool, names: set[str], batch: tuple[Tensor, Tensor, Tensor],
    teacher: NetworkRecord, student: NetworkRecord, runtime: Runtime,
) -> None:  # fmt: skip
    with objective(teacher, student if with_student else None, changed(**fields), runtime) as eq6:
        assert eq6.terms(*batch).keys() == names


@pytest.mark.parametrize("masked", [True, False])
def test_masked_images_get_exactly_no_adversarial_gradient(
    masked: bool, batch: tuple[Tensor, Tensor, Tensor], teacher: NetworkRecord, student: NetworkRecord, runtime: Runtime
) -> None:
    images, originals, labels = batch
    images = images.requires_grad_()
    wrong = torch.tensor([True, False, True, False, False, True, False, False])
    labels = torch.where(wrong, (labels + 1) % 4, labels)
    with objective(teacher, student, changed(teacher_correct_only=masked), runtime) as eq6:
        (gradient,) = torch.autograd.grad(eq6.terms(images, originals, labels)["adv"], images)
    size = gradient.flatten(1).abs().amax(1)
    assert bool((size[~wrong] > 0).all())
    assert bool((gradient[wrong] == 0).all()) if masked else bool((size[wrong] > 0).all())


def test_feature_regularisation_is_the_distance_of_the_head_s_inputs(
    batch: tuple[Tensor, Tensor, Tensor], teacher: NetworkRecord, runtime: Runtime
) -> None:
    images, originals, labels = batch
    network = restore_network(teacher)
    with objective(teacher, None, changed(regularization="feature", weight_reg=2.0), runtime) as eq6:
        terms = eq6.terms(images, originals, labels)
        again = eq6.terms(images, images, labels)
    expected = 2.0 * mse_loss(network.forward_features(images), network.forward_features(originals))
    torch.testing.assert_close(terms["reg"], expected)
    assert float(again["reg"]) == 0
    with objective(teacher, None, changed(), runtime) as eq6:  # the pass over the originals leaves L_bn alone
        assert torch.equal(eq6.terms(images, originals, labels)["bn"], terms["bn"])


def test_networks_stay_as_they_are(make: Any, teacher: NetworkRecord, student: NetworkRecord) -> None:
    before = [{k: v.clone() for k, v in record.state.items()} for record in (teacher, student)]
    make(changed(regularization="feature"))
    for state, record in zip(before, (teacher, student), strict=True):
        assert all(torch.equal(record.state[name], value) for name, value in state.items())


# Networks that do not fit


@pytest.fixture(scope="module")
def no_batchnorm() -> NetworkRecord:
    spec = NetworkSpec("torchvision/squeezenet1_1", 4, 3, 16, (0.5,) * 3, (0.25,) * 3, ("a", "b", "c", "d"))
    return NetworkRecord(spec, build_network(spec.arch, 4, 3, 16, seed=0).state_dict())


def of_16_px(record: NetworkRecord, config: SynthesisConfig, runtime: Runtime) -> Shard:
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = ArraySplit(pixels, torch.arange(4), ("a", "b", "c", "d"))
    chosen = Selection(torch.arange(4), 0, torch.arange(4)[None], torch.zeros(1, 4, dtype=torch.int64))
    return synthesize(record, None, chosen, range(1), split, 1, config, 0, runtime)


def test_a_teacher_without_batchnorm_needs_weight_bn_zero(no_batchnorm: NetworkRecord, runtime: Runtime) -> None:
    with pytest.raises(ModelError, match=r"torchvision/squeezenet1_1 has no BatchNorm.*synthesis\.weight_bn=0"):
        of_16_px(no_batchnorm, CONFIG, runtime)
    shard = of_16_px(no_batchnorm, changed(weight_bn=0.0, iterations=2), runtime)
    assert shard.history[0].keys() >= {"ce", "reg"} and "bn" not in shard.history[0]


def test_a_teacher_without_linear_head_needs_pixel_regularisation(
    no_batchnorm: NetworkRecord, runtime: Runtime
) -> None:
    with pytest.raises(ModelError, match=r"squeezenet1_1 has no linear head.*regularization=pixel"):
        of_16_px(no_batchnorm, changed(weight_bn=0.0, regularization="feature"), runtime)


# The configuration


def test_defaults_are_the_paper_s() -> None:
    config = SynthesisConfig()
    assert (config.learning_rate, config.weight_decay, config.weight_ce, config.weight_bn) == (0.25, 0.0, 1.0, 0.01)
    assert (config.first_bn_factor, config.weight_reg, config.weight_adv) == (10.0, 1.0, 1.0)
    assert (config.crop_scale, config.crops, config.flip, config.jitter) == ((0.08, 1.0), "batch", True, 4)
    assert (config.iterations, config.init, config.regularization) == (1000, "real", "pixel")
    assert config.teacher_correct_only and config.enabled


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", 0), ("batch_size", 0), ("learning_rate", 0.0), ("weight_bn", -0.1), ("jitter", -1),
        ("crop_scale", (0.0, 1.0)), ("init", "zeros"), ("unknown", 1),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        changed(**{field: value})


def test_something_must_be_left_to_minimise() -> None:
    with pytest.raises(ValidationError, match="nothing is left to minimise"):
        changed(weight_ce=0.0, weight_bn=0.0, weight_reg=0.0)
    changed(weight_ce=0.0, weight_bn=0.0, weight_reg=0.0, enabled=False)
