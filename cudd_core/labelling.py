"""The teacher's answers to replayed batches: stored by relabelling, or given again as training goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cudd_core.models.batchnorm import use_batch_statistics
from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord
from cudd_core.runtime import Runtime


@dataclass(frozen=True)
class Teaching:
    """A teacher and how it sees a batch: in eval mode or, with `batch_statistics`, BatchNorm alone as in training."""

    teacher: NetworkRecord
    batch_statistics: bool = False


class TeacherLabels:
    """`data.replay.Labels` that nobody stored. The same device and precision give the bytes that relabelling stored.

    Raises:
        ModelError: batch statistics of a teacher without BatchNorm.
    """

    def __init__(self, teaching: Teaching, runtime: Runtime) -> None:
        self._runtime = runtime
        self._network = runtime.network(restore_network(teaching.teacher))
        if teaching.batch_statistics:
            use_batch_statistics(self._network, teaching.teacher.spec.arch)

    @torch.no_grad()
    def batch(self, epoch: int, step: int, images: Tensor) -> Tensor:
        """Return the teacher's logits of a batch, rounded to float16 [b, K], on its device."""
        with self._runtime.autocast():
            logits: Tensor = self._network(images)
        return logits.half()
