"""What is stored beside a shard: a preview picture among its files, and its loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from cudd_core.data.source import ImageSplit
from cudd_core.records import Shard
from cudd_core.reporting.grid import preview_grid
from tasks.caching import EXTRA_FOLDER
from tasks.mlflow_runs import MetricRow

PREVIEW_IMAGES = 20
"""Number of images in a shard's stored preview."""


def save_preview(shard: Shard, split: ImageSplit, work: Path) -> None:
    """Save a picture of the first synthetic images, below their originals if known, to be stored with the shard."""
    extra = work / EXTRA_FOLDER
    extra.mkdir(exist_ok=True)
    shown = slice(0, PREVIEW_IMAGES)
    originals = split.images(shard.sources[shown]) if bool((shard.sources >= 0).all()) else None
    labels = shard.labels[shown].tolist()
    preview_grid(originals, shard.images[shown], split.class_names, labels).save(extra / "preview.png")


def losses_of(shard: Shard) -> list[MetricRow]:
    """Return the losses of the shard's first batch over the iterations."""
    return [
        (f"loss_{name}", value, int(row["iteration"]))
        for row in first_batch(shard.history)
        for name, value in row.items()
        if name != "iteration"
    ]


def first_batch(history: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the history of a shard's first batch, a row per iteration, without its first slice and class."""
    of = ("slice", "class")
    first = [row for row in history if all(row[name] == history[0][name] for name in of)]
    return [{name: value for name, value in row.items() if name not in of} for row in first]
