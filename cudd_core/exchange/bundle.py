"""What an export is made of, and what a format's writer reports about the files that it made."""

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
    """Where a set came from; unknown fields are empty.

    `run`: MLflow run id. `train_data`: digest of the split that was distilled, which `SyntheticSet.sources` refer to.
    `config`: the whole recipe, without paths (`data.root`). `accuracy`: the entry `accuracy` of the run's summary.
    `changes`: what was changed in the recipe that the toolkit knows by this name, `key=value` each.
    """

    recipe: str = ""
    run: str = ""
    train_data: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    accuracy: dict[str, Any] = field(default_factory=dict)
    changes: tuple[str, ...] = ()

    @property
    def dataset(self) -> str:
        """The human-readable name of the source data set, such as CIFAR-10."""
        return str(self.config.get("dataset", ""))

    @property
    def temperature(self) -> float:
        """The temperature that the evaluation divides logits by; the paper's 20 if unknown."""
        evaluation = self.config.get("evaluation")
        value = evaluation.get("temperature") if isinstance(evaluation, Mapping) else None
        return float(value) if isinstance(value, int | float) else 20.0


@dataclass(frozen=True)
class Labelling:
    """The teacher's soft labels for all epochs, and the settings that their batches were drawn with.

    `shards` are read one at a time, since together they may be larger than memory. `other_teachers`: architectures of
    further teachers, whose logits are averaged with the teacher's.
    """

    shards: Iterable[SoftLabels]
    replay: ReplayConfig
    batch_size: int
    seed: int
    temperature: float
    other_teachers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bundle:
    """Everything that an export may hold. Only exports of a run have a `teacher` and, if asked for, `labelling`."""

    synthetic: SyntheticSet
    origin: Origin = Origin()
    teacher: NetworkRecord | None = None
    labelling: Labelling | None = None


@dataclass(frozen=True)
class Written:
    """What a format's writer did.

    `order` int64 [n]: the images of the set in the order in which the format's own loader lists them. `root`: the path,
    relative to the export, that this loader is given. `folders`: the folder of every class below it, if there are any.
    """

    order: Tensor
    root: str
    folders: tuple[str, ...] = ()


def class_major(synthetic: SyntheticSet) -> Tensor:
    """Return the positions of images by class, then slice, int64 [n]: the order in which folders are listed."""
    width = int(synthetic.slices.max()) + 1 if len(synthetic.slices) else 1
    return torch.argsort(synthetic.labels * width + synthetic.slices, stable=True)
