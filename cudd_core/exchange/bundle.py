"""What an export is made of, and what a format's writer says of the files that it made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cudd_core.data.replay import ReplayConfig
from cudd_core.records import NetworkRecord, SoftLabels, SyntheticSet


@dataclass(frozen=True)
class Origin:
    """Where a set came from; what is not known is empty.

    `run`: MLflow run id. `train_data`: digest of the split that was distilled, which `SyntheticSet.sources` refer to.
    `config`: the whole recipe, without places (`data.root`). `accuracy`: that key of the run's summary.
    """

    recipe: str = ""
    run: str = ""
    train_data: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        """The source data set's name for people, such as CIFAR-10."""
        return str(self.config.get("dataset", ""))

    @property
    def temperature(self) -> float:
        """What the evaluation divides logits by; the paper's 20 where that is not known."""
        evaluation = self.config.get("evaluation")
        value = evaluation.get("temperature") if isinstance(evaluation, Mapping) else None
        return float(value) if isinstance(value, int | float) else 20.0


@dataclass(frozen=True)
class Labelling:
    """The teacher's soft labels of all epochs and what their batches were drawn from.

    `shards` are read one at a time, since all of them may be larger than memory. `other_teachers`: architectures of
    those whose logits are in the mean beside the teacher's.
    """

    shards: Iterable[SoftLabels]
    replay: ReplayConfig
    batch_size: int
    seed: int
    temperature: float
    other_teachers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """All that an export may hold. `teacher` and `labelling` are there where a run is exported."""

    synthetic: SyntheticSet
    origin: Origin = Origin()
    teacher: NetworkRecord | None = None
    labelling: Labelling | None = None


@dataclass(frozen=True)
class Written:
    """What a format's writer did.

    `order` int64 [n]: the images of the set in the order in which the format's own loader lists them. `root`: what that
    loader is pointed at, relative to the export. `folders`: the folder of every class below it, if there are any.
    """

    order: Tensor
    root: str
    folders: tuple[str, ...] = ()


def class_major(synthetic: SyntheticSet) -> Tensor:
    """Return the positions of images by class, then slice, int64 [n]: the order in which folders are listed."""
    width = int(synthetic.slices.max()) + 1 if len(synthetic.slices) else 1
    return torch.argsort(synthetic.labels * width + synthetic.slices, stable=True)
