"""root/SPLIT/CLASS/FILE: the folder layout of ImageNet and of torchvision's ImageFolder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from cudd_core.data.encoded import EncodedSplit
from cudd_core.data.filesystem import require_folder
from cudd_core.data.labels import check_labels
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""File name extensions of images, in lower case."""

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF8", b"II*\0", b"MM\0*", *(b"P%d" % n for n in range(1, 7)))
_TRIED = 1000  # classes of which an image is decoded when a split is opened: takes seconds
_THREADS = 8  # opening many small files waits for the disk, not for the processor


class FolderSplit(EncodedSplit):
    """Images in files, read when needed. `names`: file names by class, then name; `places`: one folder per class.

    `folders`: the folders of the images and their parents, which change when images or classes are added or removed.
    """

    def __init__(
        self,
        names: list[str],
        places: Sequence[str],
        labels: Tensor,
        class_names: tuple[str, ...],
        config: DataConfig,
        digest: str,
    ) -> None:
        super().__init__(labels, class_names, config, digest)
        self._names, self._places = names, places  # not joined: paths of ten million files fill gigabytes
        self.folders = tuple(sorted({*places, *map(os.path.dirname, places)}))

    def encoded(self, index: int) -> tuple[str, bytes]:
        """Return the path and the bytes of the file."""
        path = self._path(index)
        try:
            return path, Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}). Was it moved since the run began?") from error

    def _changed(self, index: int) -> int:
        try:
            return os.stat(self._path(index)).st_mtime_ns
        except OSError:
            return 0  # reading the file will report what is wrong

    def _path(self, index: int) -> str:
        return os.path.join(self._places[int(self.labels[index])], self._names[index])


def open_image_folder(config: DataConfig, split: str) -> FolderSplit:
    """Open `config.root`/`split`. Classes are the training split's folders, in the order of `class_order`.

    Every file is checked by its extension and first bytes; only the first image of each class, for up to a thousand
    classes, is decoded. Names that begin with a dot are skipped.

    Raises:
        DataError: missing root or split, no class folders, images or broken links beside them, a class that the
            training split does not have, a file that is not an image, a training class without images, or a class whose
            first image's channels disagree with data.channels.
    """
    root = require_folder(config.root)
    folder = root / split
    if not folder.is_dir():
        there = ", ".join(list_folders(root)) or "none"
        raise DataError(
            f"{root} has no folder {split!r}. Folders there: {there}. The layout is SPLIT/CLASS/IMAGE: if these are "
            f"the splits, name them with data.train_split and data.test_split; if they are classes, put them into "
            f"{config.train_split!r} and, with other images, into {config.test_split!r}."
        )
    training = root / config.train_split
    own = set(list_classes(folder))
    others = training.is_dir() and training != folder
    class_names = class_order(list_classes(training) if others else list(own))
    if not own:
        raise DataError(f"{folder} has no class folders. The layout is {split}/CLASS/IMAGE, one folder a class.")
    if unknown := class_order(list(own - set(class_names))):
        raise DataError(
            f"{folder} has {len(unknown)} classes that {training} does not have: {', '.join(unknown[:5])}. "
            "All splits must have the same classes: rename, remove or add folders."
        )
    listings = list_images_of([folder / name if name in own else None for name in class_names])
    places = [os.path.join(folder, name) for name in class_names]
    return split_of_listings("image_folder", class_names, places, listings, config, split)


def split_of_listings(
    source: str,
    class_names: tuple[str, ...],
    places: Sequence[str],
    listings: list[list[tuple[str, int]]],
    config: DataConfig,
    split: str,
) -> FolderSplit:
    """Return the split of the listed files, (name, bytes) by class; those of class k are in the folder `places[k]`.

    The first image of each class is decoded, for up to a thousand classes, to report a wrong data.channels now and not
    hours later.

    Raises:
        DataError: a class of the training split has no images, or a class's first image cannot be used.
    """
    names = [name for found in listings for name, _ in found]
    sizes = torch.tensor([len(found) for found in listings])
    labels = torch.repeat_interleave(torch.arange(len(class_names)), sizes)
    check_labels(labels, class_names, f"{config.root}, split {split!r}", every_class=split == config.train_split)
    digest = digest_of_listings(source, class_names, listings, config)
    opened = FolderSplit(names, places, labels, class_names, config, digest)
    first = (sizes.cumsum(0) - sizes)[sizes > 0]
    opened.try_images(first[:: -(-len(first) // _TRIED)])
    return opened


def class_order(names: list[str]) -> tuple[str, ...]:
    """Sort class names: by number if all are whole numbers ("2" before "10"), else as text.

    Example:
        >>> class_order(["10", "9"]), class_order(["10", "9", "x"])
        (('9', '10'), ('10', '9', 'x'))
    """
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _visible(folder: Path) -> list[tuple[os.DirEntry[str], bool]]:
    """Return the entries of a folder, each with whether it is a folder, without names that begin with a dot."""
    try:
        with os.scandir(folder) as entries:
            return [(entry, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        where = error.filename or folder
        raise DataError(f"{where} cannot be read ({error.strerror}). Mend its permissions or link.") from error


def list_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without those that begin with a dot.

    Raises:
        DataError: the folder cannot be read, or a name is not UTF-8, which our files could not store.
    """
    return _folder_names(folder, _visible(folder))


def _folder_names(folder: Path, entries: list[tuple[os.DirEntry[str], bool]]) -> list[str]:
    names = sorted(entry.name for entry, is_folder in entries if is_folder)
    for name in names:
        _check_name(folder, "folder", name)
    return names


def list_classes(folder: Path) -> list[str]:
    """Return the class folders in a split's folder, as `list_folders`.

    Raises:
        DataError: as `list_folders`; also if there are images, which would have no class, or broken links beside the
            class folders.
    """
    entries = _visible(folder)
    names = _folder_names(folder, entries)
    for entry, is_folder in entries if names else ():
        if is_folder:
            continue
        if entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError(
                f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there. Mend or remove it."
            )
        if is_image(entry.name):
            raise DataError(
                f"{entry.path} lies beside class folders, so it has no class. Move all images into the folders of "
                "their classes, or take it out."
            )
    return names


def is_image(name: str) -> bool:
    """Return whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _check_name(folder: Path, kind: str, name: str) -> None:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        what = f"{folder} has a {kind} whose name is not UTF-8: {os.fsencode(name)!r}"
        raise DataError(f"{what}. Rename it.") from error


def list_images_of(folders: Sequence[Path | None]) -> list[list[tuple[str, int]]]:
    """Return `list_images` of each folder, and an empty list for None."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="list") as pool:
        return list(pool.map(lambda folder: [] if folder is None else list_images(folder), folders))


def list_images(folder: Path) -> list[tuple[str, int]]:
    """Return (file name, bytes) of the images of one class, sorted by name. Raises DataError for any other file."""
    found = []
    for entry, is_folder in _visible(folder):
        _check_name(folder, "file", entry.name)
        if is_folder:
            raise DataError(f"{entry.path} is a folder inside a class folder. Put the images into {folder} itself.")
        if not is_image(entry.name):
            raise DataError(
                f"{entry.path} is not an image file by its name. Take it out of the class folder, or give it "
                f"its ending ({', '.join(sorted(EXTENSIONS))})."
            )
        try:
            status = entry.stat()
            if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                raise DataError(f"{entry.path} is a pipe or a device. Take it out of the class folder.")
            with open(entry.path, "rb") as file:
                head = file.read(12)
            size = status.st_size
        except OSError as error:
            raise DataError(f"{entry.path} cannot be read ({error.strerror}). Mend its permissions or link.") from error
        # Any image format will do, whatever the extension: ImageNet itself has a PNG named .JPEG.
        if not head.startswith(_MAGIC) and not (head.startswith(b"RIFF") and head.endswith(b"WEBP")):
            what = "empty" if not head else "not an image by its first bytes"
            raise DataError(f"{entry.path} is {what}. Replace it or take it out of the class folder.")
        found.append((entry.name, size))
    return sorted(found)


def digest_of_listings(
    source: str, class_names: tuple[str, ...], listings: list[list[tuple[str, int]]], config: DataConfig
) -> str:
    """Return sha256 hex over source, class names, channels, image size and (class, file name, bytes) of each image.

    Contents are not read, since that would take hours for ImageNet. So a file replaced by another of the same name and
    length goes unnoticed.
    """
    hasher = hashlib.sha256(json.dumps([source, list(class_names), *config.pixel_identity]).encode())
    for label, found in enumerate(listings):
        hasher.update(json.dumps([label, found]).encode())
    return hasher.hexdigest()
