"""Labelled images: `open_split` opens the source that a configuration names."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch

from cudd_core.data.digits import open_digits
from cudd_core.data.encoded import EncodedSplit
from cudd_core.data.hf_parquet import open_hf_parquet
from cudd_core.data.image_folder import FolderSplit, is_image, open_image_folder
from cudd_core.data.imagenet import open_imagenet
from cudd_core.data.source import DataConfig, ImageSplit
from cudd_core.data.subset import Subset, limited
from cudd_core.data.tiny_imagenet import open_tiny_imagenet
from cudd_core.data.torchvision_source import open_torchvision
from cudd_core.progress import Progress, silent

SOURCES: dict[str, Callable[[DataConfig, str], ImageSplit]] = {
    "digits": open_digits,
    "torchvision": open_torchvision,
    "image_folder": open_image_folder,
    "hf_parquet": open_hf_parquet,
    "tiny_imagenet": open_tiny_imagenet,
    "imagenet": open_imagenet,
}
"""`DataConfig.source` → the function that opens one of its splits in full (all images, without limit_per_class)."""

Stamp = tuple[int, int]
"""Modification time in nanoseconds and size in bytes; zeros for a path that does not exist."""

_KEPT_SPLITS = 8
_opened: OrderedDict[tuple[object, ...], tuple[ImageSplit, tuple[Stamp, ...]]] = OrderedDict()
_opening = threading.Lock()


def open_split(config: DataConfig, split: str, decoded: Path | None = None) -> ImageSplit:
    """Return a split of the source that `config` names, at most `config.limit_per_class` images of each class.

    `decoded`: a folder for decoded images (`cudd_core.data.decoded`), used if the configuration allows it. Pixels and
    digests do not depend on it.

    Within this process, calls with equal configurations share one split, and so one decoded copy, as long as no file is
    added to or removed from its local folders. (An image overwritten in place and changes on s3 go unnoticed until
    `forget_splits` is called.) Safe to call from several threads.

    Raises:
        DataError: missing folder, file or split, an unreadable file, labels or channels that do not fit.

    Example:
        >>> test = open_split(DataConfig(source="digits", channels=1, image_size=8), "test")
        >>> test.images(test.labels[:2]).shape
        torch.Size([2, 1, 8, 8])
    """
    whole = config.model_copy(update={"limit_per_class": 0})
    with _opening:
        key = (whole, split, _listing(config, split))
        kept = _opened.get(key)
        if kept is None or kept[1] != _changes(kept[0]):
            opened = SOURCES[config.source](whole, split)
            kept = _opened[key] = opened, _changes(opened)
        _opened.move_to_end(key)
        while len(_opened) > _KEPT_SPLITS:
            _opened.popitem(last=False)
        opened = kept[0]
    if decoded is not None and config.keeps_decoded and isinstance(opened, EncodedSplit):
        opened.keep_decoded(decoded)
    return limited(opened, config.limit_per_class) if config.limit_per_class else opened


def decode_ahead(split: ImageSplit, progress: Progress = silent) -> None:
    """Decode the images of `split` that its folder of decoded images lacks, in the order of the source's files.

    For stages that go through all images in another order. Does nothing for splits without such a folder.

    Raises:
        DataError: an image that cannot be read.
    """
    whole, positions = split, torch.arange(len(split))
    if isinstance(split, Subset):
        whole, positions = split.whole, split.positions
    if isinstance(whole, EncodedSplit):
        whole.decode_ahead(positions, progress)


def forget_splits() -> None:
    """Drop all splits that `open_split` keeps, so that the next call reads the files again."""
    with _opening:
        _opened.clear()


def _listing(config: DataConfig, split: str) -> tuple[tuple[str, Stamp], ...]:
    """Return the stamps of all entries in the root, `data/` (Parquet: every folder in the root) and the split.

    Those of class folders and images in the split, of which there may be 50,000, are left to `_changes`.
    """
    # torchvision's downloads land in its root after the first look, and do not change afterwards.
    if config.source == "torchvision" or not config.root or config.root.startswith("s3://"):
        return ()
    root = Path(config.root).expanduser()
    # Parquet files may lie in any folder below the root.
    parquet = config.source == "hf_parquet"
    below = [Path(entry.path) for entry in _entries(root) if entry.is_dir()] if parquet else [root / "data"]
    found = [entry for folder in (root, *below) for entry in _entries(folder)]
    in_split = (entry for entry in _entries(root / split) if not is_image(entry.name))
    found += [entry for entry in in_split if not entry.is_dir(follow_symlinks=False)]
    return tuple(sorted((entry.path, _stamp(entry.path)) for entry in found))


def _changes(split: ImageSplit) -> tuple[Stamp, ...]:
    """Return the stamps of the folders of images. Cheap even for ImageNet: one `stat` per class."""
    return tuple(map(_stamp, split.folders)) if isinstance(split, FolderSplit) else ()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []  # opening the split will report what is wrong


def _stamp(path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
