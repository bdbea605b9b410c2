"""What is stored beside a shard: a preview among its files, its losses as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cudd_core.data.source import ImageSplit
from cudd_core.records import Shard
from cudd_core.reporting.grid import preview_grid
from tasks.caching import EXTRA_FOLDER
from tasks.mlflow_runs import MetricRow

PREVIEW_IMAGES = 20
"""Images of a shard's stored preview."""


def save_preview(shard: Shard, split: ImageSplit, work: Path) -> None:
    """Leave originals above the first synthetic images among the files that are stored too."""
    extra = work / EXTRA_FOLDER
    extra.mkdir(exist_ok=True)
    shown = slice(0, PREVIEW_IMAGES)
    originals = split.images(shard.sources[shown]) if bool((shard.sources >= 0).all()) else None
    labels = shard.labels[shown].tolist()
    preview_grid(originals, shard.images[shown], split.class_names, labels).save(extra / "preview.png")


def losses_of(shard: Shard) -> list[MetricRow]:
    """Losses of the shard's first batch over iterations."""
    return [
        (f"loss_{name}", value, int(row["iteration"]))
        for row in first_batch(shard.history)
        for name, value in row.items()
        if name != "iteration"
    ]


def first_batch(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the rows of a shard's first batch over iterations, without the slice and class that it begins with."""
    of = ("slice", "class")
    first = [row for row in history if all(row[name] == history[0][name] for name in of)]
    return [{name: value for name, value in row.items() if name not in of} for row in first]
