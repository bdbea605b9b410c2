"""Shards are written and read batch by batch, and never unpacked as a whole for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cudd_core.codec import TENSOR_FILE, read_record, write_record
from cudd_core.data.label_forms import LabelForm, Storage, decode
from cudd_core.data.label_shards import StoredLabels, as_record, batch_labels, rows_of, unpacked
from cudd_core.data.replay import batch_bounds
from cudd_core.records import LabelShard, SoftLabels

STORED: list[Storage] = [form for form in get_args(Storage) if form != "none"]
EPOCHS, N, CLASSES, BATCH, FIRST = 3, 37, 12, 16, 20
BOUNDS = batch_bounds(N, BATCH)


def batch(epoch: int, step: int) -> Tensor:
    start, stop = BOUNDS[step]
    rng = torch.Generator().manual_seed(100 * epoch + step)
    return torch.randn(stop - start, CLASSES, generator=rng).half()


def shard(form: LabelForm, epochs: int = EPOCHS) -> LabelShard:
    columns = form.empty(CLASSES, epochs, N, len(BOUNDS))
    for row in range(epochs):
        for step, bounds in enumerate(BOUNDS):
            for name, value in form.encode(batch(FIRST + row, step)).items():
                columns[name][row][rows_of(name, step, bounds)] = value
    return as_record(columns, CLASSES, FIRST)


@pytest.mark.parametrize("storage", STORED)
def test_every_batch_is_what_its_logits_decode_to(storage: Storage, tmp_path: Path) -> None:
    form = LabelForm(storage, 4, 20.0)
    write_record(shard(form), tmp_path)
    read = read_record(tmp_path)
    assert isinstance(read, LabelShard) and isinstance(read, SoftLabels) == (storage == "full")
    whole = unpacked(read, BOUNDS)
    assert whole.logits.shape == (EPOCHS, N, CLASSES) and whole.first_epoch == FIRST
    for epoch in range(FIRST, FIRST + EPOCHS):
        for step, (start, stop) in enumerate(BOUNDS):
            due = decode(form.encode(batch(epoch, step)), CLASSES)
            assert torch.equal(batch_labels(read, epoch, step, (start, stop)), due)
            assert torch.equal(whole.logits[epoch - FIRST, start:stop], due)
    with pytest.raises(IndexError):
        batch_labels(read, FIRST + EPOCHS, 0, BOUNDS[0])


class Allocated(TorchDispatchMode):
    """Notes the largest memory that any operation's result has and its inputs have not, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else [arg])]
        known = {x.untyped_storage().data_ptr() for x in inputs if isinstance(x, Tensor)}
        for value in result if isinstance(result, list | tuple) else [result]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in known:
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("storage", STORED)
def test_training_reads_mapped_files_and_never_holds_more_than_a_batch(storage: Storage, tmp_path: Path) -> None:
    write_record(shard(LabelForm(storage, 4, 20.0), epochs=50), tmp_path)
    read = read_record(tmp_path, verified=True)
    assert isinstance(read, LabelShard)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(TENSOR_FILE)]
    spans = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in mapped if str(tmp_path) in line]
    for column in read.columns.values():
        assert any(low <= column.data_ptr() < high for low, high in spans)
    labels = StoredLabels([read], BOUNDS)
    images = torch.zeros(BATCH, 1)
    with Allocated() as allocated:
        for epoch in range(FIRST, FIRST + 50):
            for step in range(len(BOUNDS)):
                labels.batch(epoch, step, images)
    # The widest result is a batch of int64 class numbers or float32 values; one epoch as float16 would be larger.
    assert allocated.largest <= BATCH * CLASSES * 4 < N * CLASSES * 2
    assert (allocated.largest == 0) == (storage == "full")
