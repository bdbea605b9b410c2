"""Small data sets that tests write themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cudd_core.data import forget_splits

# An S3 server takes seconds to start: CUDD_TEST_SERVERS=1 runs it too.
collect_ignore = [] if os.environ.get("CUDD_TEST_SERVERS") else ["test_s3.py"]


def noise(seed: int, channels: int, size: tuple[int, int] = (12, 12)) -> np.ndarray:
    """Return uint8 noise [H, W] or [H, W, 3]; the same seed gives the same image."""
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    """Return `pixels` as a PNG file."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path, split: str, classes: list[str], per_class: int = 4, channels: int = 3) -> None:
    """Write root/split/class/number.png with noise that depends on class and number."""
    for label, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(per_class):
            (folder / f"{number}.png").write_bytes(png(noise(1000 * label + number, channels)))


def write_parquet(
    path: Path,
    images: list[bytes | None],
    labels: list[int | None],
    names: list[str] | None = None,
    nested: bool = True,
    row_group_size: int = 3,
    extra: dict[str, list[int]] | None = None,
) -> None:
    """Write a Parquet file as `datasets` does (with `names`), or a plain one."""
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    values = pa.array([{"bytes": i, "path": None} for i in images], struct) if nested else pa.array(images, pa.binary())
    table = pa.table({"img": values, "label": pa.array(labels, pa.int64()), **(extra or {})})
    if names is not None:
        features = {"img": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)


@pytest.fixture
def files() -> SimpleNamespace:
    """The writers above, for tests (imported test modules cannot import each other in importlib mode)."""
    return SimpleNamespace(noise=noise, png=png, write_folder=write_folder, write_parquet=write_parquet)


@pytest.fixture
def three_classes() -> Callable[[int, int], tuple[list[bytes], list[int]]]:
    """(images per class, channels) → PNGs and labels of three classes, mixed up."""

    def make(per_class: int, channels: int) -> tuple[list[bytes], list[int]]:
        labels = [label for _ in range(per_class) for label in (2, 0, 1)]
        return [png(noise(seed, channels)) for seed in range(len(labels))], labels

    return make


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    forget_splits()
    yield
    forget_splits()
