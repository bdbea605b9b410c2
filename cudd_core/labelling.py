"""The teachers' answers to replayed batches: stored by relabelling, or given again as training goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cudd_core.compute.graphs import MOST_VALUES, Recorded
from cudd_core.compute.runtime import Runtime
from cudd_core.data.replay import Views
from cudd_core.models.batchnorm import use_batch_statistics
from cudd_core.models.committee import restore_committee
from cudd_core.records import NetworkRecord

_MOST_RECORDED = MOST_VALUES // 4
"""Values in a batch of images above which answers are not recorded: a pass without gradients is few kernels, whose
launches hide behind 341 images of 32 px, and recording waits for the GPU and gives all cached memory back."""


@dataclass(frozen=True)
class Teaching:
    """A teacher and how it sees a batch: in eval mode or, with `batch_statistics`, BatchNorm alone as in training.

    `others` see it alike; labels are then the mean of all logits.
    """

    teacher: NetworkRecord
    batch_statistics: bool = False
    others: Sequence[NetworkRecord] = ()


class TeacherLabels:
    """`data.replay.Labels` that nobody stored. The same device and precision give the bytes that relabelling stored.

    Batches that are there together are answered in one pass, unless a batch's own statistics are part of the answer.

    Raises:
        ModelError: batch statistics of a teacher without BatchNorm.
    """

    def __init__(self, teaching: Teaching, runtime: Runtime) -> None:
        teachers = restore_committee([teaching.teacher, *teaching.others])
        network = runtime.network(teachers)
        if teaching.batch_statistics:
            for member, name in zip(teachers.members, teachers.names, strict=True):
                use_batch_statistics(member, name)

        # It knows nothing of `self`, so that its graphs go when this does.
        @torch.no_grad()
        def answer(images: Tensor) -> tuple[Tensor]:
            with runtime.autocast():
                logits: Tensor = network(images)
            return (logits.half(),)

        self._answer = Recorded(answer, runtime.device, runtime.config.graphs, most=_MOST_RECORDED)
        self._batch_by_batch = teaching.batch_statistics
        self._last: tuple[Views, Tensor] | None = None

    def of(self, epoch: int, views: Views) -> Iterator[Tensor]:
        """Give the logits of the epoch's batches, the mean over teachers, rounded to float16 [b, K], on its device."""
        if self._batch_by_batch:
            return (self._logits(views.images[place]) for place in views.places(epoch))
        if self._last is not None and self._last[0] is views:
            logits = self._last[1]
        else:
            logits = self._logits(views.images)
            # Only for epochs that were made together: there is nothing else to ask again of these views.
            self._last = (views, logits) if len(views.epochs) > 1 else None
        return (logits[place] for place in views.places(epoch))

    def _logits(self, images: Tensor) -> Tensor:
        (logits,) = self._answer.kept(images)
        return logits
