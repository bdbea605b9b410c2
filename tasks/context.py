"""What all stages of a run share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cudd_core.compute.runtime import ComputeConfig
from cudd_core.data import open_split
from cudd_core.data.source import DataConfig, ImageSplit
from tasks.ledger import Ledger
from tasks.runners import LOCAL
from tasks.store import Store


@dataclass(frozen=True)
class DataRef:
    """A data source and the digests of its splits. The digests enter keys; `config`, which is a location, does not."""

    config: DataConfig
    train: str
    test: str
    num_classes: int

    def open_train(self, decoded: Path | None = None) -> ImageSplit:
        """Return the split that is distilled. `decoded` (see `open_split`) is for callers that read its images."""
        return open_split(self.config, self.config.train_split, decoded)

    def open_test(self, decoded: Path | None = None) -> ImageSplit:
        """Return the split on which accuracies are measured."""
        return open_split(self.config, self.config.test_split, decoded)


@dataclass(frozen=True)
class StageContext:
    """What all stages of a run share. Picklable and small. Keys depend on `data`, `compute`, `seed` and `weights`.

    `force`: stages to compute even if their outputs are stored, except for the keys in `remade`, for which that has
    been done. `runner`: `local`, `ray` or `ray://host:port`. `ledger`: if given, tasks only look up their keys in it.
    `patient`: tasks wait while other tasks want a device. `weights`: path of a teacher's file → its digest.
    """

    store: Store
    data: DataRef
    compute: ComputeConfig
    seed: int
    pipeline_run: str
    force: frozenset[str] = frozenset()
    remade: frozenset[str] = frozenset()
    runner: str = LOCAL
    ledger: Ledger | None = None
    patient: bool = False
    weights: Mapping[str, str] = field(default_factory=dict)

    def train_images(self) -> ImageSplit:
        """Return the split that is distilled; its images are decoded once for this home."""
        return self.data.open_train(self.store.decoded_folder)

    def test_images(self) -> ImageSplit:
        """Return the split on which accuracies are measured; its images are decoded once for this home."""
        return self.data.open_test(self.store.decoded_folder)
