"""One PNG file per image in one folder per class, and `index.csv`, which says what every file is."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cudd_core.data.labels import place_in_class
from cudd_core.errors import DataError
from cudd_core.exchange.bundle import Written, class_major
from cudd_core.exchange.manifest import ExportManifest
from cudd_core.image_table import decode_png, encode_png
from cudd_core.image_threads import decode_into, for_each_image
from cudd_core.records import SyntheticSet

INDEX_FILE = "index.csv"
COLUMNS = ("path", "label", "slice", "source", "curriculum")

UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, RuntimeError, SyntaxError),
    Image.DecompressionBombError,
)
"""What readers raise for a file that does not hold what it should."""


def digits(count: int, least: int) -> int:
    """Return how many digits the numbers below `count` need, at least `least`, so that they sort as text."""
    return max(least, len(str(max(count - 1, 0))))


def write_tree(
    synthetic: SyntheticSet, folder: Path, root: str, folders: Sequence[str], name: Callable[[int, int], str]
) -> Written:
    """Write every image losslessly to `folder`/`root`/CLASS/NAME.png, and the index.

    `name(label, rank)` must sort as text in the order of the ranks, which count the images of a class from 0.
    """
    order = class_major(synthetic)
    # Ranks follow slices, since a set is ordered by (slice, label).
    ranks = place_in_class(synthetic.labels).tolist()
    labels = synthetic.labels.tolist()
    paths = [f"{root}/{folders[label]}/{name(label, rank)}.png" for label, rank in zip(labels, ranks, strict=True)]
    for each in folders:
        (folder / root / each).mkdir(parents=True)

    def write(index: int) -> None:
        (folder / paths[index]).write_bytes(encode_png(synthetic.images[index]))

    for_each_image(synthetic.images, write)
    with (folder / INDEX_FILE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for index in order.tolist():
            numbers = (synthetic.slices[index], synthetic.sources[index], synthetic.curricula[index])
            rows.writerow((paths[index], labels[index], *(int(number) for number in numbers)))
    return Written(order, root, tuple(folders))


def read_tree(folder: Path, manifest: ExportManifest) -> SyntheticSet:
    """Read back what `write_tree` wrote; `read_manifest` has already checked the files.

    Raises:
        DataError: the index or an image does not fit the manifest.
    """
    n, channels, height, width = manifest.images
    listed = {file.path for file in manifest.files}
    path = folder / INDEX_FILE
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        if len(rows) != n or any(row["path"] not in listed for row in rows):
            raise ValueError(f"does not list the {n} images of the manifest")
        columns = {name: torch.tensor([int(row[name]) for row in rows], dtype=torch.int64) for name in COLUMNS[1:]}

        def decode(row: int) -> Tensor:
            return decode_png((folder / rows[row]["path"]).read_bytes(), (channels, height, width))

        images = torch.empty((n, channels, height, width), dtype=torch.uint8)
        decode_into(images, range(n), decode)
        return ordered(images, columns, manifest.classes)
    except (*UNREADABLE, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}). Export or copy the set again.") from error


def ordered(images: Tensor, columns: dict[str, Tensor], class_names: tuple[str, ...]) -> SyntheticSet:
    """Return the set in its canonical order, by (slice, label).

    Raises:
        ValueError: labels outside 0 … K − 1, or two images of one class in one slice.
    """
    labels, slices = columns["label"], columns["slice"]
    classes = len(class_names)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes or int(slices.min()) < 0):
        raise ValueError(f"labels must be 0 to {classes - 1}, slices 0 or more")
    places = slices * classes + labels
    if len(torch.unique(places)) != len(places):
        raise ValueError("two images have the same slice and label")
    order = torch.argsort(places)
    return SyntheticSet(
        # They usually are in order, and a needless copy of a large set is expensive.
        images=images if torch.equal(order, torch.arange(len(order))) else images[order],
        labels=labels[order],
        slices=slices[order],
        sources=columns["source"][order],
        curricula=columns["curriculum"][order],
        class_names=class_names,
    )
