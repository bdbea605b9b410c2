"""The teacher on a set from a folder: how often they agree, and a set whose classes are in another order."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from cudd_core.codec import content_digest
from cudd_core.compute.runtime import ComputeConfig
from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.exchange import Bundle, read_set, write_export
from cudd_core.records import Accuracy, SyntheticSet
from cudd_core.teacher import TeacherConfig
from cudd_core.training import TrainingConfig
from tasks.context import DataRef, StageContext
from tasks.import_set import import_set
from tasks.measure import measure_set
from tasks.refs import Ref
from tasks.squeeze import squeeze
from tasks.stage import fetch
from tasks.store import Store

IPC = 5


@pytest.fixture
def context(store: Store) -> StageContext:
    config = DataConfig(source="digits", channels=1, image_size=8, limit_per_class=60)
    train, test = open_split(config, "train"), open_split(config, "test")
    data = DataRef(config, train.digest, test.digest, len(train.class_names))
    return StageContext(store, data, ComputeConfig(), 0, "pipeline")


def test_a_set_in_another_order_is_warned_of(
    context: StageContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.progress.UI_SECONDS", math.inf)  # there is no Prefect to show progress to
    training = TrainingConfig(optimizer="sgd", learning_rate=0.1, epochs=4, batch_size=32)
    teacher = ref_of(squeeze.fn(context, TeacherConfig(arch="convnet1-w16", training=training, flip=False)))
    train = context.data.open_train()
    chosen = torch.cat([torch.nonzero(train.labels == label).flatten()[:IPC] for label in range(10)])
    labels, slices = train.labels[chosen], torch.arange(IPC).repeat(10)
    ones = torch.ones_like(labels)
    synthetic = SyntheticSet(train.images(chosen), labels, slices, -ones, ones, train.class_names)
    write_export(Bundle(synthetic), "rded", tmp_path / "set")
    (tmp_path / "set" / "export.json").unlink()

    def agreement() -> float:
        digest = content_digest(read_set(tmp_path / "set").synthetic)
        shard = ref_of(import_set.fn(context, str(tmp_path / "set"), digest, 1, False))
        return fetch(context, ref_of(measure_set.fn(context, teacher, (shard,))), Accuracy).accuracy

    right = agreement()
    assert right > 0.7 and "another order" not in caplog.text
    first, second, *_ = sorted({path.parent for path in (tmp_path / "set").rglob("*.*g")})
    aside = first.rename(tmp_path / "aside")
    second.rename(first)
    aside.rename(second)
    assert agreement() < right - 0.15
    assert "takes most images of '0' for '1', '1' for '0': the set's classes seem to be in another order" in caplog.text


def ref_of(state: object) -> Ref:
    ref = state.data
    assert isinstance(ref, Ref)
    return ref
