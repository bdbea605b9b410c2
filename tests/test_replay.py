"""Labels belong to the pixels they were computed on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.label_shards import StoredLabels
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.replay import (
    _EPOCHS_TOGETHER,
    _VALUES_TOGETHER,
    ClassReplay,
    LabelledReplay,
    Replay,
    ReplayConfig,
    _draw_once,
    batch_bounds,
    batches_together,
    draw_batches,
    epoch_order,
    epoch_orders,
    epochs_together,
)
from cudd_core.labelling import TeacherLabels, Teaching
from cudd_core.models.registry import build_network, restore_network
from cudd_core.records import LabelShard, NetworkRecord, NetworkSpec, SoftLabels, SyntheticSet
from cudd_core.stages.relabel import relabel

SPEC = NetworkSpec("convnet2-w4", 3, 3, 8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25), ("a", "b", "c"))
N, BATCH = 13, 4
CONFIGS = [
    ReplayConfig(),
    ReplayConfig(mix="mixup", mix_alpha=0.8),
    ReplayConfig(mix="none", flip=False, crop_scale=(0.5, 1.0)),
]


def synthetic() -> SyntheticSet:
    pixels = torch.randint(0, 256, (N, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(N)
    return SyntheticSet(pixels, numbers % 3, numbers // 3, numbers, torch.zeros(N, dtype=torch.int64), SPEC.class_names)


def replay(config: ReplayConfig | None = None, seed: int = 0, batch_size: int = BATCH) -> Replay:
    return Replay(synthetic(), SPEC, config or ReplayConfig(), batch_size, seed, Runtime(ComputeConfig()))


def stored(shards: list[LabelShard], distinct: int, config: ReplayConfig | None = None) -> LabelledReplay:
    replayed = replay(config)
    return LabelledReplay(replayed, StoredLabels(shards, replayed.bounds), distinct)


def batches(replayed: Replay, epoch: int) -> list[Tensor]:
    return [images for views in replayed.views(epoch) for images, *_ in views.batches(epoch)]


def pixels(replayed: Replay, epoch: int) -> Tensor:
    return torch.cat(batches(replayed, epoch))


@given(st.integers(1, 500), st.integers(2, 100))
def test_batches_cover_the_set_and_none_has_one_image(n: int, batch_size: int) -> None:
    bounds = batch_bounds(n, batch_size)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))
    sizes = [stop - start for start, stop in bounds]
    assert all(size == batch_size for size in sizes[:-1])
    assert sizes[-1] <= batch_size + 1
    assert n == 1 or min(sizes) > 1


@given(st.integers(1, 50))
def test_single_images_are_covered_too(n: int) -> None:
    assert [i for start, stop in batch_bounds(n, 1) for i in range(start, stop)] == list(range(n))


@pytest.mark.parametrize("config", CONFIGS)
def test_two_replays_give_the_same_bytes_whatever_was_replayed_before(
    config: ReplayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = replay(config), replay(config)
    forwards = [pixels(first, epoch) for epoch in range(4)]
    backwards = [pixels(second, epoch) for epoch in reversed(range(4))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))
    monkeypatch.setitem(_VALUES_TOGETHER, "cpu", 1)  # every batch on its own, the epochs interleaved
    first, second = replay(config), replay(config)
    one, other = list(zip(*zip(first.views(2), second.views(3), strict=True), strict=True))
    assert [list(views.steps) for views in one] == [[0], [1], [2]]
    assert torch.equal(torch.cat([views.images for views in one]), forwards[2])
    assert torch.equal(torch.cat([views.images for views in other]), forwards[3])


@pytest.mark.parametrize("config", CONFIGS)
def test_epochs_that_are_made_together_are_those_made_alone(
    config: ReplayConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: three at a time, wherever one begins, which is where labels and a resumed training do."""
    alone = [pixels(replay(config), epoch) for epoch in range(8)]
    classes = [[c for views in replay(config).views(e) for _, *c in views.batches(e)] for e in range(8)]
    monkeypatch.setitem(_EPOCHS_TOGETHER, "cpu", 3)
    for order in (range(8), range(4, 8), (7, 1, 0, 5)):
        replayed = replay(config)
        for epoch in order:
            (views,) = replayed.views(epoch)
            assert views.epochs == range(epoch - epoch % 3, epoch - epoch % 3 + 3)
            assert torch.equal(pixels(replayed, epoch), alone[epoch])
            for (_, *found), due in zip(views.batches(epoch), classes[epoch], strict=True):
                assert all(map(torch.equal, found, due))


@pytest.mark.parametrize("epochs", [range(8), range(2, 4), range(4, 5), range(1, 7), range(3, 3)])
@pytest.mark.parametrize(("values", "together"), [(1, 1), (2**19, 1), (2**19, 3)])
def test_walking_through_epochs_meets_every_batch_once_and_in_order(
    epochs: range, values: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_VALUES_TOGETHER, "cpu", values)
    monkeypatch.setitem(_EPOCHS_TOGETHER, "cpu", together)
    met = [
        (epoch, step, views.images[place])
        for views, asked in replay().walk(epochs)
        for epoch in asked
        for step, place in zip(views.steps, views.places(epoch), strict=True)
    ]
    assert [(epoch, step) for epoch, step, _ in met] == [(epoch, step) for epoch in epochs for step in range(3)]
    due = [images for epoch in epochs for images in batches(replay(), epoch)]
    assert all(torch.equal(images, other) for (*_, images), other in zip(met, due, strict=True))


@pytest.mark.parametrize("config", CONFIGS)
def test_batches_are_drawn_alike_alone_and_together(config: ReplayConfig) -> None:
    batches = tuple((epoch, step, 4 - step) for epoch in range(5) for step in range(3))
    crops, mixes = draw_batches(config, 0, batches, 32)
    assert (mixes is None) == (config.mix == "none")
    start = 0
    for row, batch in enumerate(batches):
        alone, mix = draw_batches(config, 0, (batch,), 32)
        rows = slice(start, start + batch[2])
        np.testing.assert_array_equal(crops.boxes[rows], alone.boxes)
        np.testing.assert_array_equal(crops.mirrored[rows], alone.mirrored)
        if mixes is not None and mix is not None:
            np.testing.assert_array_equal(mixes.partner[rows], mix.partner + start)
            assert set(mixes.batch[rows]) == {row}
            np.testing.assert_array_equal(mixes.boxes[row], mix.boxes[0])
            assert (mixes.keep[row], mixes.shares[row]) == (mix.keep[0], mix.shares[0])
        start = rows.stop


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_labels_of_epochs_that_are_made_together_are_those_of_each(
    batch_statistics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher answers all of them in one pass, once, also where a shard begins or ends among them."""
    runtime = Runtime(ComputeConfig())
    teacher = NetworkRecord(SPEC, build_network(SPEC.arch, 3, 3, 8, seed=0).state_dict())

    def labels(epochs: range) -> Tensor:
        made = relabel(Teaching(teacher, batch_statistics), synthetic(), epochs, BATCH, ReplayConfig(), 0, runtime)
        assert isinstance(made, SoftLabels)
        return made.logits

    alone = labels(range(8))
    monkeypatch.setitem(_EPOCHS_TOGETHER, "cpu", 3)
    together = labels(range(8))
    torch.testing.assert_close(together, alone, rtol=2**-10, atol=1e-6)
    assert torch.equal(torch.cat([labels(range(4)), labels(range(4, 8))]), together)
    labelled = LabelledReplay(replay(), TeacherLabels(Teaching(teacher, batch_statistics), runtime), 8)
    asked = [torch.cat([logits for _, logits, *_ in labelled.epoch(epoch)]) for epoch in range(8)]
    assert torch.equal(torch.stack(asked), together)


def test_threads_and_the_global_generator_do_not_matter() -> None:
    expected = [pixels(replay(), epoch) for epoch in range(4)]
    with torch.random.fork_rng(devices=[]), ThreadPoolExecutor(3) as pool:
        torch.manual_seed(99)
        computed = list(pool.map(lambda epoch: pixels(replay(), epoch), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(computed, expected, strict=True))


def test_on_a_cpu_nothing_that_was_drawn_stays_in_memory() -> None:
    """Small tensors between the activations would keep the heap from using its memory again."""
    before = _draw_once.cache_info()
    list(replay(ReplayConfig()).views(0))
    assert _draw_once.cache_info() == before


def test_another_seed_epoch_or_batch_gives_other_pixels() -> None:
    reference = pixels(replay(), 0)
    assert not torch.equal(pixels(replay(seed=1), 0), reference)
    assert not torch.equal(pixels(replay(), 1), reference)
    assert not torch.equal(pixels(replay(batch_size=5), 0), reference)


def test_every_epoch_walks_in_an_order_of_its_own() -> None:
    first, second = epoch_order(0, 0, N), epoch_order(0, 1, N)
    assert not torch.equal(first, second) and not torch.equal(first, epoch_order(1, 0, N))
    assert torch.equal(epoch_orders(0, range(2), N), torch.stack([first, second]))
    walked = replay()
    for epochs in (range(2), range(1, 2), range(2)):
        assert torch.equal(walked.orders(epochs), epoch_orders(0, epochs, N))


def test_batches_of_an_epoch_are_augmented_differently() -> None:
    """With one image in every place, batches would be equal if they shared their stream."""
    replayed = replay(ReplayConfig(mix="none"))
    replayed.pixels = replayed.pixels[:1].expand(N, -1, -1, -1)
    first, second, _ = batches(replayed, 0)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len({tuple(image.flatten().tolist()) for image in first}) == BATCH  # nor do images of a batch share a crop


def test_without_augmentation_an_epoch_is_the_set_normalised_once_in_its_order() -> None:
    plain = replay(ReplayConfig(crop_scale=(1.0, 1.0), flip=False, mix="none"))
    order = epoch_order(0, 3, N)
    assert sorted(order.tolist()) == list(range(N))
    normalised = Normalizer.of(SPEC)(synthetic().images)
    assert torch.equal(pixels(plain, 3), normalised[order])
    assert plain.steps_per_epoch == len(batches(plain, 0)) == 3


@pytest.mark.parametrize("config", CONFIGS)
def test_labels_are_the_teacher_s_answer_to_exactly_what_training_sees(config: ReplayConfig) -> None:
    runtime = Runtime(ComputeConfig())
    network = build_network(SPEC.arch, 3, 3, 8, seed=0)
    network.train()(torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    teacher = NetworkRecord(SPEC, network.state_dict())
    labels = [
        relabel(Teaching(teacher), synthetic(), epochs, BATCH, config, 0, runtime) for epochs in (range(2, 5), range(2))
    ]

    labelled = stored(labels, 5, config)
    judge = runtime.network(restore_network(teacher))
    for epoch in range(5):
        (views,) = replay(config).views(epoch)
        seen = list(labelled.epoch(epoch))
        assert len(seen) == len(views.steps) == labelled.steps_per_epoch
        for (original, *_), (images, logits) in zip(views.batches(epoch), seen, strict=True):
            assert torch.equal(images, original) and images.stride() == original.stride()
            assert logits.dtype == torch.float16
        assert torch.equal(judge(views.images).half(), torch.cat([logits for _, logits in seen]))


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_how_many_batches_are_labelled_together_does_not_matter(
    batch_statistics: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels may sum in another order for another number of images: float16 allows a unit in the last place."""
    runtime = Runtime(ComputeConfig())
    network = build_network(SPEC.arch, 3, 3, 8, seed=0)
    teacher = NetworkRecord(SPEC, network.state_dict())

    def labels() -> Tensor:
        made = relabel(Teaching(teacher, batch_statistics), synthetic(), range(3), BATCH, ReplayConfig(), 0, runtime)
        assert isinstance(made, SoftLabels)
        return made.logits

    together = labels()
    monkeypatch.setitem(_VALUES_TOGETHER, "cpu", 1)
    one_by_one = labels()
    if batch_statistics:
        assert torch.equal(together, one_by_one)
    torch.testing.assert_close(together, one_by_one, rtol=2**-10, atol=1e-6)


def paint(labelled: LabelledReplay) -> None:
    """Give every image a value of its own, so that pixels say which image they came from."""
    values = torch.arange(N, dtype=torch.uint8).view(N, 1, 1, 1)
    labelled.replay.pixels = values.expand(N, 3, 8, 8)
    labelled.replay.labels = torch.arange(N)  # a class each, so that classes say it too
    labelled.replay.normalizer = Normalizer((0.0,) * 3, (1 / 255,) * 3)


@pytest.mark.parametrize("config", CONFIGS)
def test_hard_labels_are_mixed_as_the_pixels_are(config: ReplayConfig) -> None:
    """Counted pixel by pixel, for CutMix; by their blend, for mixup; and the own class alone without mixing."""
    labelled = stored([SoftLabels(torch.zeros(6, N, 3, dtype=torch.float16), 0)], 6, config)
    labelled.classes = True
    paint(labelled)
    shares = []
    for epoch in range(6):
        for images, _, label, partner, share in labelled.epoch(epoch):
            own, partners = label.float().view(-1, 1, 1), partner.float().view(-1, 1, 1)
            plane = images[:, 0]
            shares.append(float(share))
            if config.mix == "cutmix":
                mine, theirs = (plane - own).abs() < 1e-3, (plane - partners).abs() < 1e-3
                assert bool((mine | theirs).all())
                other = label != partner
                assert torch.allclose(mine[other].double().mean((1, 2)), share)
            blend = share * own + (1 - share) * partners
            torch.testing.assert_close(plane.mean((1, 2)), blend.flatten(), rtol=1e-4, atol=1e-3)
    assert set(shares) == {1.0} if config.mix == "none" else len(set(shares)) > 5


@pytest.mark.parametrize("config", CONFIGS)
def test_without_soft_labels_batches_and_classes_are_the_same(config: ReplayConfig) -> None:
    labelled = stored([SoftLabels(torch.zeros(3, N, 3, dtype=torch.float16), 0)], 3, config)
    labelled.classes = True
    alone = ClassReplay(replay(config), 3)
    assert alone.steps_per_epoch == labelled.steps_per_epoch
    for epoch in (0, 1, 2, 3, 7):
        for (images, _, *classes), due in zip(labelled.epoch(epoch), alone.epoch(epoch), strict=True):
            assert all(map(torch.equal, (images, *classes), due))


def test_each_epoch_finds_its_own_shard() -> None:
    shards: list[LabelShard] = [
        SoftLabels(torch.full((count, N, 3), float(first), dtype=torch.float16), first)
        for first, count in ((4, 2), (0, 3), (3, 1))
    ]
    labelled = stored(shards, 6)
    firsts = [{float(v) for _, logits in labelled.epoch(epoch) for v in logits.unique()} for epoch in range(6)]
    assert firsts == [{0.0}, {0.0}, {0.0}, {3.0}, {4.0}, {4.0}]


def test_an_epoch_without_labels_is_an_error() -> None:
    labelled = stored([SoftLabels(torch.zeros(2, N, 3, dtype=torch.float16), 0)], 3)
    with pytest.raises(IndexError, match="epochs 0 to 1 have no epoch 2"):
        list(labelled.epoch(2))


def test_an_epoch_before_the_labels_is_an_error() -> None:
    """A negative row would silently be another epoch's."""
    labelled = stored([SoftLabels(torch.zeros(2, N, 3, dtype=torch.float16), 5)], 7)
    with pytest.raises(IndexError, match="epochs 5 to 6 have no epoch 4"):
        list(labelled.epoch(4))


def test_labelled_epochs_are_used_again_with_their_pixels_and_order() -> None:
    shards: list[LabelShard] = [
        SoftLabels(torch.stack([torch.full((N, 3), float(e)) for e in epochs]).half(), epochs.start)
        for epochs in (range(2), range(2, 3))
    ]
    labelled = stored(shards, 3)
    for epoch in range(8):
        seen = list(labelled.epoch(epoch))
        assert torch.equal(torch.cat([images for images, *_ in seen]), pixels(replay(), epoch % 3))
        assert {float(v) for _, logits in seen for v in logits.unique()} == {float(epoch % 3)}


@given(st.integers(1, 2000), st.integers(1, 50))
def test_every_distinct_epoch_is_used_at_most_reuse_times(epochs: int, reuse: int) -> None:
    distinct = ReplayConfig(reuse=reuse).distinct_epochs(epochs)
    uses = [len(range(first, epochs, distinct)) for first in range(min(distinct, epochs))]
    assert sum(uses) == epochs and max(uses) <= reuse
    assert distinct == 1 or (distinct - 1) * reuse < epochs  # and there are no more of them than that needs


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_is_made_at_a_time_is_bounded(device: str) -> None:
    """But for what one batch or one epoch has, however large the images."""
    for values in (64, 3 * 32**2, 3 * 224**2):
        for batch in (10, 16, 100):
            together = batches_together(batch, values, device)
            assert together == 1 or together * batch * values <= _VALUES_TOGETHER[device]
            assert (together + 1) * batch * values > _VALUES_TOGETHER[device], "more would fit"
        epochs = epochs_together(100 * values, device)
        assert epochs == 1 or epochs * 100 * values <= _VALUES_TOGETHER[device]
    # A set of 100 small images: its epochs are labelled in few passes.
    assert epochs_together(100 * 3 * 32**2, "cuda") > 1
