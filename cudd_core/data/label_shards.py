"""Label shards, written and read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from cudd_core.compute.transfer import upload
from cudd_core.data.label_forms import decode
from cudd_core.data.replay import Views
from cudd_core.errors import DataError
from cudd_core.records import LabelShard, PackedLabels, SoftLabels

BYTES_TOGETHER = 2**25
"""Bytes of labels that are copied to or from a GPU at the same time."""


def _row(shard: LabelShard, epoch: int) -> int:
    """Return the position in the shard of the epoch with this number. Raises IndexError if it is not there."""
    row, count = epoch - shard.first_epoch, len(next(iter(shard.columns.values())))
    if not 0 <= row < count:
        raise IndexError(
            f"labels of epochs {shard.first_epoch} to {shard.first_epoch + count - 1} have no epoch {epoch}"
        )
    return row


def put_batches(
    columns: Mapping[str, Tensor], made: Sequence[Mapping[str, Tensor]], first: int, bounds: Sequence[tuple[int, int]]
) -> None:
    """Copy the encoded labels of consecutive batches to the columns, whose epochs are cut into batches at `bounds`.

    `made`: columns of one batch or of several (`LabelForm.encode_batches`) each. `first`: the number of the first
    batch, counted on from epoch to epoch. If labels are on a GPU, the host waits for it once, not once per batch.
    """
    row, step = divmod(first, len(bounds))
    for name, column in columns.items():
        whole = torch.cat([each[name].reshape(-1, column.shape[-1]) for each in made]).cpu()
        start = first if name == "range" else row * column.shape[1] + bounds[step][0]
        column.flatten(0, 1)[start : start + len(whole)] = whole


def as_record(columns: dict[str, Tensor], num_classes: int, first_epoch: int) -> LabelShard:
    """Return columns as a record."""
    if columns.keys() == {"logits"}:
        return SoftLabels(columns["logits"], first_epoch)
    return PackedLabels(columns, num_classes, first_epoch)


def batch_labels(
    shard: LabelShard, epoch: int, step: int, bounds: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Return float16 logits [b, K] of one batch on `device`; nothing but that batch is copied or decoded.

    `epoch` is absolute; batch `step` is rows `bounds` of it.

    Raises:
        IndexError: the shard does not have this epoch.
    """
    row = _row(shard, epoch)
    part = {name: column[row][step if name == "range" else slice(*bounds)] for name, column in shard.columns.items()}
    return decode({name: upload(column, device) for name, column in part.items()}, shard.num_classes)


def unpacked(shard: LabelShard, bounds: Sequence[tuple[int, int]]) -> SoftLabels:
    """Return all logits of a shard whose epochs are cut into batches at `bounds`."""
    if isinstance(shard, SoftLabels):
        return shard
    first, count = shard.first_epoch, len(next(iter(shard.columns.values())))
    logits = torch.empty(count, bounds[-1][1], shard.num_classes, dtype=torch.float16)
    for row in range(count):
        for step, (start, stop) in enumerate(bounds):
            logits[row, start:stop] = batch_labels(shard, first + row, step, (start, stop))
    return SoftLabels(logits, first)


class StoredLabels:
    """Labels from shards, which may be mapped from files.

    A batch is decoded when it is needed. For a GPU, an epoch's stored labels are copied all at once if they are small
    (`BYTES_TOGETHER`).

    Raises:
        DataError: the labels are of another number of images, or (8-bit forms) of batches. Another seed or augmentation
            leaves no trace in them.
    """

    def __init__(self, shards: Sequence[LabelShard], bounds: Sequence[tuple[int, int]]) -> None:
        for shard in shards:
            _check_sizes(shard, bounds)
        self._shards = sorted(shards, key=lambda shard: shard.first_epoch)
        self._bounds = bounds
        self._read: tuple[int, LabelShard] | None = None

    def of(self, epoch: int, views: Views) -> Iterator[Tensor]:
        """See `data.replay.Labels`. Raises IndexError for an epoch that no shard has."""
        device = views.images.device
        if self._read is None or self._read[0] != epoch:
            shard = next((s for s in reversed(self._shards) if s.first_epoch <= epoch), self._shards[0])
            self._read = epoch, _epoch_of(shard, epoch, device)
        for step in views.steps:
            yield batch_labels(self._read[1], epoch, step, self._bounds[step], device)


def _check_sizes(shard: LabelShard, bounds: Sequence[tuple[int, int]]) -> None:
    for name, column in shard.columns.items():
        what, due = ("batches", len(bounds)) if name == "range" else ("images", bounds[-1][1])
        if column.shape[1] != due:
            raise DataError(
                f"Labels from epoch {shard.first_epoch} on are of {column.shape[1]} {what}, but an epoch of this "
                f"training has {due}. Make them by `relabel` from the same set, with the training's batch size, replay "
                "and seed."
            )


def _epoch_of(shard: LabelShard, epoch: int, device: torch.device) -> LabelShard:
    """Return the shard or, for a GPU and if it is small, its part of one epoch on the device."""
    row = _row(shard, epoch)
    part = {name: column[row : row + 1] for name, column in shard.columns.items()}
    if device.type == "cpu" or sum(column.nbytes for column in part.values()) > BYTES_TOGETHER:
        return shard
    columns = {name: upload(column, device) for name, column in part.items()}
    return as_record(columns, shard.num_classes, epoch)
