"""Soft labels: the teacher's answers to the replayed batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from cudd_core.compute.runtime import Runtime
from cudd_core.data.label_forms import LabelForm, Storage, decode
from cudd_core.data.label_shards import StoredLabels, unpacked
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.replay import _VALUES_TOGETHER, LabelledReplay, Replay, ReplayConfig, epoch_order
from cudd_core.errors import ModelError
from cudd_core.labelling import TeacherLabels, Teaching
from cudd_core.models.registry import build_network, restore_network
from cudd_core.records import NetworkRecord, PackedLabels, SoftLabels, SyntheticSet
from cudd_core.stages.relabel import RelabelConfig, relabel

BATCH = 5  # of 12 images: 5, 5, 2


def labels_of(*arguments: Any, **fields: Any) -> SoftLabels:
    """Labels in the form that keeps everything."""
    made = relabel(*arguments, **fields)
    assert isinstance(made, SoftLabels)
    return made


@pytest.mark.parametrize("mix", ["cutmix", "mixup", "none"])
def test_shards_of_epochs_give_the_labels_of_one(
    mix: str, teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    config = RelabelConfig.model_validate({"mix": mix})
    whole = labels_of(Teaching(teacher), synthetic, range(6), BATCH, config, 0, runtime)
    parts = [
        labels_of(Teaching(teacher), synthetic, epochs, BATCH, config, 0, runtime) for epochs in (range(4, 6), range(4))
    ]
    assert whole.logits.shape == (6, 12, 4) and whole.logits.dtype == torch.float16
    assert [part.first_epoch for part in parts] == [4, 0]
    assert torch.equal(torch.cat([parts[1].logits, parts[0].logits]), whole.logits)
    assert not torch.equal(whole.logits[0], whole.logits[1])


def test_training_gets_the_pixels_that_the_teacher_saw(
    teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    config = RelabelConfig()
    labels = [
        relabel(Teaching(teacher), synthetic, epochs, BATCH, config, 3, runtime) for epochs in (range(2), range(2, 3))
    ]
    # The student's side has the plain replay configuration, and a specification with its own architecture.
    side = ReplayConfig.model_validate(config.model_dump(include=set(ReplayConfig.model_fields)))
    replay = Replay(synthetic, teacher.spec, side, BATCH, 3, runtime)
    labelled = LabelledReplay(replay, StoredLabels(labels, replay.bounds), 3)
    network = runtime.network(restore_network(teacher))
    for epoch in range(3):
        for images, logits in labelled.epoch(epoch):
            assert torch.equal(network(images).half(), logits)


def test_unaugmented_labels_are_the_teacher_s_logits_in_eval_mode(
    teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    config = RelabelConfig(crop_scale=(1.0, 1.0), flip=False, mix="none")
    labels = labels_of(Teaching(teacher), synthetic, range(1), BATCH, config, 0, runtime)
    replay = Replay(synthetic, teacher.spec, config, BATCH, 0, runtime)
    network = restore_network(teacher)
    order = epoch_order(0, 0, len(synthetic.labels))
    alone = torch.cat([network(replay.normalizer(synthetic.images[i : i + 1])) for i in order])
    torch.testing.assert_close(labels.logits[0].float(), alone, rtol=2e-3, atol=2e-3)
    assert torch.equal(alone.argmax(1), synthetic.labels[order])  # selected because the teacher is right


def test_with_batch_statistics_they_are_what_a_copy_in_train_mode_answers(
    teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    before = {name: value.clone() for name, value in teacher.state.items()}
    labels = relabel(Teaching(teacher, True), synthetic, range(2), BATCH, RelabelConfig(), 0, runtime)
    training = runtime.network(restore_network(teacher)).train()
    replay = Replay(synthetic, teacher.spec, RelabelConfig(), BATCH, 0, runtime)
    for epoch in range(2):
        (views,) = replay.views(epoch)
        expected = torch.cat([training(images).half() for images, *_ in views.batches(epoch)])
        assert torch.equal(labels.logits[epoch], expected)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state.items())
    assert not torch.equal(
        labels.logits, relabel(Teaching(teacher), synthetic, range(2), BATCH, RelabelConfig(), 0, runtime).logits
    )


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_several_teachers_give_the_mean_of_their_logits_stored_or_not(
    batch_statistics: bool, teacher: NetworkRecord, student: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    """The student stands for another teacher, which sees images normalised in its own way."""
    other = replace(student, spec=replace(student.spec, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    labels = labels_of(
        Teaching(teacher, batch_statistics, [other]), synthetic, range(2), BATCH, RelabelConfig(), 0, runtime,
    )  # fmt: skip
    replay = Replay(synthetic, teacher.spec, RelabelConfig(), BATCH, 0, runtime)
    answers = TeacherLabels(Teaching(teacher, batch_statistics, [other]), runtime)
    networks = [runtime.network(restore_network(each)).train(batch_statistics) for each in (teacher, other)]
    first, its_own = (Normalizer.of(each.spec) for each in (teacher, other))
    for epoch in range(2):
        (views,) = replay.views(epoch)
        assert torch.equal(torch.cat(list(answers.of(epoch, views))), labels.logits[epoch])
        for place, (images, *_) in zip(views.places(epoch), views.batches(epoch), strict=True):
            pixels = images * first.std + first.mean
            alone = networks[0](images), networks[1]((pixels - its_own.mean) / its_own.std)
            due = (alone[0] + alone[1]) / 2
            torch.testing.assert_close(labels.logits[epoch, place].float(), due, rtol=2e-3, atol=2e-3)


def test_the_teacher_without_batchnorm_is_named(
    teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    spec = replace(teacher.spec, arch="convnet2-w8-in")
    plain = NetworkRecord(spec, build_network(spec.arch, 4, 3, 8, 0).state_dict())
    with pytest.raises(ModelError, match="convnet2-w8-in has no BatchNorm"):
        relabel(Teaching(teacher, True, [plain]), synthetic, range(1), BATCH, RelabelConfig(), 0, runtime)


def test_seed_and_batch_size_matter_and_progress_counts_epochs(
    teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_VALUES_TOGETHER, "cpu", 1)
    seen: list[tuple[float, int]] = []

    def logits(seed: int, batch_size: int) -> torch.Tensor:
        return labels_of(
            Teaching(teacher), synthetic, range(3, 5), batch_size, RelabelConfig(), seed, runtime,
            progress=lambda done, total, _: seen.append((done, total)),
        ).logits  # fmt: skip

    reference = logits(0, BATCH)
    assert [done for done, _ in seen if done == int(done)] == [1, 2], "epochs, and steps as parts of them"
    assert len(seen) > 2 and {total for _, total in seen} == {2}
    assert torch.equal(logits(0, BATCH), reference)
    assert not torch.equal(logits(1, BATCH), reference)
    assert not torch.equal(logits(0, 4), reference)


@pytest.mark.parametrize("storage", ["int8", "topk", "topk-int8"])
def test_packed_labels_are_the_full_ones_encoded_batch_by_batch(
    storage: Storage, teacher: NetworkRecord, synthetic: SyntheticSet, runtime: Runtime
) -> None:
    form = RelabelConfig(storage=storage, top=2).form(20.0)
    assert form == LabelForm(storage, 2, 20.0)

    def packed(epochs: range) -> PackedLabels:
        made = relabel(Teaching(teacher), synthetic, epochs, BATCH, RelabelConfig(), 0, runtime, form=form)
        assert isinstance(made, PackedLabels)
        return made

    full = labels_of(Teaching(teacher), synthetic, range(4), BATCH, RelabelConfig(), 0, runtime)
    whole, parts = packed(range(4)), [packed(range(3)), packed(range(3, 4))]
    for name, column in whole.columns.items():
        assert torch.equal(torch.cat([part.columns[name] for part in parts]), column)
    bounds = [(0, 5), (5, 10), (10, 12)]
    logits = unpacked(whole, bounds).logits
    for epoch in range(4):
        for start, stop in bounds:
            due = decode(form.encode(full.logits[epoch, start:stop]), 4)
            assert torch.equal(logits[epoch, start:stop], due)
