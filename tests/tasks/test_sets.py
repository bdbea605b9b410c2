"""S_{1:j} in memory: read once for all tasks of a process that want the same one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from cudd_core.compute.runtime import ComputeConfig
from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.errors import Cancelled, StoreError
from cudd_core.records import Shard
from tasks import sets
from tasks.context import DataRef, StageContext
from tasks.progress import stop_requested
from tasks.refs import Ref
from tasks.sets import load_set
from tasks.store import Store

CLASSES = 10


@pytest.fixture
def context(make_store: Callable[..., Store]) -> StageContext:
    sets._read.clear()
    config = DataConfig(source="digits", image_size=8, channels=1)
    train, test = (open_split(config, name) for name in ("train", "test"))
    return StageContext(make_store(), DataRef(config, train.digest, test.digest, CLASSES), ComputeConfig(), 0, "run")


def shards(context: StageContext, seed: int) -> tuple[Ref, ...]:
    """Two slices, the later one first."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES)
    made = [
        Shard(
            torch.randint(0, 256, (CLASSES, 1, 8, 8), dtype=torch.uint8, generator=generator),
            *(labels, torch.full_like(labels, number), labels, number + 1),
        )
        for number in (1, 0)
    ]
    return tuple(context.store.commit(f"{seed}{n}" * 32, "synthesize", each) for n, each in enumerate(made))


def test_a_set_is_read_once_until_another_one_is_asked_for(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = shards(context, 1), shards(context, 2)
    read, fetch = list[Ref](), sets.fetch
    monkeypatch.setattr(sets, "fetch", lambda *given: (read.append(given[1]), fetch(*given))[1])
    first = load_set(context, one)
    assert first.slices.tolist() == [0] * CLASSES + [1] * CLASSES
    assert load_set(replace(context, seed=1), one) is first and read == [*one]
    assert load_set(context, other) is not first and len(sets._read) == 1
    again = load_set(context, one)
    assert torch.equal(again.images, first.images) and read == [*one, *other, *one]


def test_a_set_has_the_class_names_of_the_data_it_is_read_for(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two data sets that differ in the names of their folders alone may come to the same shards."""
    whole = shards(context, 1)
    assert load_set(context, whole).class_names == context.data.open_train().class_names
    other = replace(context.data.open_train(), class_names=tuple("abcdefghij"))
    monkeypatch.setattr("tasks.context.open_split", lambda *_: other)
    assert load_set(context, whole).class_names == tuple("abcdefghij")


def test_what_cannot_be_read_leaves_nothing_behind(context: StageContext) -> None:
    whole = shards(context, 1)
    load_set(context, whole)
    with pytest.raises(StoreError):
        load_set(context, (replace(whole[0], run_id="0" * 32, digest="f" * 64),))
    assert not sets._read and not sets._reading.locked()


def test_whoever_waited_notices_a_stop(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_requested, "is_set", lambda: True)
    with pytest.raises(Cancelled):
        load_set(context, shards(context, 1))
