"""The teachers' logits for replayed batches, which relabelling stores or training computes as it goes."""

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
"""Values in a batch of images above which the teachers' pass is not recorded as a graph. A pass without gradients has
few kernels; from 341 images of 32 px on, computation hides their launches. Recording waits for the GPU and releases all
cached memory."""


@dataclass(frozen=True)
class Teaching:
    """A teacher and its mode: eval mode or, with `batch_statistics`, eval mode with BatchNorm alone as in training.

    `others`: further teachers, used in the same mode; labels are then the mean of all logits.
    """

    teacher: NetworkRecord
    batch_statistics: bool = False
    others: Sequence[NetworkRecord] = ()


class TeacherLabels:
    """`data.replay.Labels` that are computed, not stored; equal to stored ones made on the same device and precision.

    Batches made together are labelled in one pass, unless the logits depend on each batch's own statistics.

    Raises:
        ModelError: batch statistics are wanted of a teacher without BatchNorm.
    """

    def __init__(self, teaching: Teaching, runtime: Runtime) -> None:
        teachers = restore_committee([teaching.teacher, *teaching.others])
        network = runtime.network(teachers)
        if teaching.batch_statistics:
            for member, name in zip(teachers.members, teachers.names, strict=True):
                use_batch_statistics(member, name)

        # It does not refer to `self`, so that its graphs are freed with this object.
        @torch.no_grad()
        def answer(images: Tensor) -> tuple[Tensor]:
            with runtime.autocast():
                logits: Tensor = network(images)
            return (logits.half(),)

        self._answer = Recorded(answer, runtime.device, runtime.config.graphs, most=_MOST_RECORDED)
        self._batch_by_batch = teaching.batch_statistics
        self._last: tuple[Views, Tensor] | None = None

    def of(self, epoch: int, views: Views) -> Iterator[Tensor]:
        """Return the logits of the epoch's batches: mean over teachers, float16 [b, K], on the images' device."""
        if self._batch_by_batch:
            return (self._logits(views.images[place]) for place in views.places(epoch))
        logits = self._logits_of(views)
        return (logits[place] for place in views.places(epoch))

    def of_epochs(self, epochs: range, views: Views) -> Tensor:
        """Return the logits of all batches of `epochs`, which are consecutive and in `views`: float16 [rows, K]."""
        places = [place for epoch in epochs for place in views.places(epoch)]
        if self._batch_by_batch:
            return torch.cat([self._logits(views.images[place]) for place in places])
        return self._logits_of(views)[places[0].start : places[-1].stop]

    def _logits_of(self, views: Views) -> Tensor:
        if self._last is not None and self._last[0] is views:
            return self._last[1]
        logits = self._logits(views.images)
        # Kept only if the views hold several epochs: otherwise nobody asks for them again.
        self._last = (views, logits) if len(views.epochs) > 1 else None
        return logits

    def _logits(self, images: Tensor) -> Tensor:
        (logits,) = self._answer.kept(images)
        return logits
