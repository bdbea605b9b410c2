"""Hugging Face image data sets as Parquet: a local folder or s3://bucket/prefix with `SPLIT-*.parquet`."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType
from torch import Tensor

from cudd_core.data.filesystem import open_filesystem
from cudd_core.data.labels import check_labels
from cudd_core.data.parquet_split import Columns, ParquetPart, ParquetSplit, named
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

CONTENT_LIMIT = 8 << 30
"""Splits with fewer bytes are digested in full; larger ones by sizes, footers and labels (see `_digest`)."""

_SHARD = re.compile(r"(?P<split>.+)-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]{16})?")
"""Shard names as `datasets` writes them; earlier versions append a hash."""

_MOST_CLASSES = 100_000  # if there are only class numbers, no names


def open_hf_parquet(config: DataConfig, split: str) -> ParquetSplit:
    """Open a split of the data set at `config.root` (files are there, in `data/` or in one other folder below it).

    Columns are those named in the configuration, else the ones that the Hugging Face metadata calls Image and
    ClassLabel, else those of a fitting type. Class names come from the ClassLabel; without one they are the labels.

    Raises:
        DataError: missing root, split or shard; a duplicate shard, or shards mixed with other files; files in several
            folders; no or several candidate columns; labels that are not 0 … K − 1; a damaged file; a first image whose
            channels disagree with data.channels.
    """
    filesystem, root = open_filesystem(config.root)
    found = _find_splits(filesystem, root, config.root)
    for name, paths in found.items():
        _check_shards(name, paths, config.root)
    if not found:
        raise DataError(
            f"{config.root} has no Parquet files, neither there nor in a folder below it. Set data.root to the folder "
            f"with {split}-*.parquet."
        )
    if split not in found:
        raise DataError(
            f"{config.root} has no split {split!r} (no file {split}-*.parquet). "
            f"Splits there: {', '.join(sorted(found))}. Set data.train_split or data.test_split."
        )
    files = [_look(filesystem, path) for path in found[split]]
    columns = _choose_columns(files, config)
    labels = _read_labels(files, columns.label)
    where = f"{config.root}, split {split!r}"
    class_names = columns.names or _names_from_labels(filesystem, found, labels, columns.label, config, split)
    # Without a training split and without names, only the labels themselves show which classes exist.
    told = columns.names or config.train_split in found
    check_labels(labels, class_names, where, every_class=split == config.train_split or not told)
    digest = _digest(filesystem, found[split], labels, class_names, columns, config)
    opened = ParquetSplit(files, columns, labels, class_names, config, digest)
    opened.images(torch.tensor([0]))  # reports a wrong data.channels now, not hours later
    return opened


def _find_splits(filesystem: FileSystem, root: str, shown: str) -> dict[str, list[str]]:
    """Return split → its files in order, from `root`, else `root`/data, else the only folder in `root` that has any.

    The Hub keeps a configuration's files in a folder of that name, such as `plain_text` for CIFAR-10.
    """

    def listed(folder: str) -> list[FileInfo]:
        with named(shown):
            entries = filesystem.get_file_info(FileSelector(folder, allow_not_found=True))
        return sorted(entries, key=lambda entry: str(entry.base_name))

    here = listed(root)
    if splits := _splits_of(here):
        return splits
    below = {entry.base_name: entry.path for entry in here if entry.type == FileType.Directory}
    if "data" in below and (splits := _splits_of(listed(below.pop("data")))):
        return splits
    found = {name: _splits_of(listed(path)) for name, path in below.items() if not name.startswith(".")}
    found = {name: splits for name, splits in found.items() if splits}
    if len(found) > 1:
        raise DataError(
            f"{shown} has Parquet files in several folders: {', '.join(found)}. Set data.root to one of them."
        )
    return next(iter(found.values()), {})


def _splits_of(entries: list[FileInfo]) -> dict[str, list[str]]:
    """Return split → its files among the entries of one folder."""
    splits: dict[str, list[str]] = {}
    for entry in entries:
        if entry.type == FileType.File and entry.base_name.endswith(".parquet"):
            stem = entry.base_name.removesuffix(".parquet")
            match = _SHARD.fullmatch(stem)
            splits.setdefault(match["split"] if match else stem.partition("-")[0], []).append(entry.path)
    return splits


def _check_shards(split: str, paths: list[str], shown: str) -> None:
    names = [path.rpartition("/")[2] for path in paths]
    matches = {name: _SHARD.fullmatch(name.removesuffix(".parquet")) for name in names}
    shards = [match for match in matches.values() if match]
    if not shards:
        return
    if other := [name for name, match in matches.items() if not match]:
        raise DataError(
            f"{shown} has shards of split {split!r} and {other[0]} beside them, so its images may be there twice. Take "
            "out whichever is not meant."
        )
    counts = {int(match["count"]) for match in shards}
    if len(counts) > 1 or sorted(int(match["number"]) for match in shards) != list(range(*counts)):
        raise DataError(
            f"{shown} has {len(shards)} shards of split {split!r} where the file names say "
            f"{' or '.join(map(str, sorted(counts)))}. The copy is incomplete or mixes two versions: copy it again."
        )


def _look(filesystem: FileSystem, path: str) -> ParquetPart:
    with named(path), filesystem.open_input_file(path) as source:
        return ParquetPart(filesystem, path, pq.read_metadata(source))


def _choose_columns(files: list[ParquetPart], config: DataConfig) -> Columns:
    first_path, schema = files[0].path, files[0].metadata.schema.to_arrow_schema()
    for file in files[1:]:
        if not file.metadata.schema.to_arrow_schema().equals(schema):
            raise DataError(f"{file.path} has other columns than {first_path}. All files of a split must agree.")
    features = _features(schema)
    typed_columns = ", ".join(f"{field.name} ({field.type})" for field in schema)

    def is_nested(kind: pa.DataType) -> bool:
        return bool(pa.types.is_struct(kind)) and kind.get_field_index("bytes") >= 0

    def is_image(kind: pa.DataType) -> bool:
        return is_nested(kind) or bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def choose(wanted: str, setting: str, feature: str, what: str, fits: Any) -> str:
        if wanted and wanted not in schema.names:
            raise DataError(f"{first_path} has no column {wanted!r} ({setting}). Columns: {', '.join(schema.names)}.")
        if wanted and not fits(schema.field(wanted).type):
            raise DataError(
                f"{first_path}: column {wanted!r} ({setting}) is {schema.field(wanted).type}, not {what}. "
                f"Columns: {typed_columns}."
            )
        if wanted:
            return wanted
        typed = [field.name for field in schema if fits(field.type)]
        declared = [name for name in typed if features.get(name, {}).get("_type") == feature]
        candidates = declared or typed
        if len(candidates) != 1:
            if candidates:
                raise DataError(
                    f"{first_path}: several columns hold {what}. Set {setting} to one of: {', '.join(candidates)}."
                )
            raise DataError(f"{first_path}: no column holds {what}. Columns: {typed_columns}.")
        return str(candidates[0])

    image = choose(
        config.image_column, "data.image_column", "Image", "images (bytes, or struct<bytes, path>)", is_image
    )
    label = choose(config.label_column, "data.label_column", "ClassLabel", "integer labels", pa.types.is_integer)
    told = features.get(label, {}).get("names")
    names = tuple(map(str, told)) if isinstance(told, list) else ()
    return Columns(image, is_nested(schema.field(image).type), label, names)


def _features(schema: pa.Schema) -> dict[str, dict[str, Any]]:
    """Return the Hugging Face feature of each column from the schema's metadata; empty if there are none."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return {}


def _read_labels(files: list[ParquetPart], column: str) -> Tensor:
    parts = []
    for part in files:
        with part.opened() as file:
            values = file.read(columns=[column]).column(column)
        if values.null_count:
            raise DataError(
                f"{part.path}: {values.null_count} rows have no value in label column {column!r}. Remove them."
            )
        try:
            numbers = values.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(
                f"{part.path}: column {column!r} has a value beyond 2⁶³, so it is not the class of each, a number from "
                "0. Name the right one with data.label_column."
            ) from error
        parts.append(torch.from_numpy(numbers.to_numpy().copy()))
    return torch.cat(parts)


def _names_from_labels(
    filesystem: FileSystem, found: dict[str, list[str]], labels: Tensor, column: str, config: DataConfig, split: str
) -> tuple[str, ...]:
    """Name classes after their labels. Their number comes from the training split, so that all splits agree."""
    if split != config.train_split and config.train_split in found:
        labels = _read_labels([_look(filesystem, path) for path in found[config.train_split]], column)
    if len(labels) and int(labels.max()) >= max(len(labels), _MOST_CLASSES):
        # Every class needs an image, so this is not a label, and a name for each number could fill the memory.
        raise DataError(
            f"{config.root}: column {column!r} has the value {int(labels.max())} among {len(labels)} rows, so it is "
            "not the class of each, a number from 0. Name the right one with data.label_column."
        )
    return tuple(str(label) for label in range(int(labels.max()) + 1 if len(labels) else 0))


def _digest(
    filesystem: FileSystem,
    paths: list[str],
    labels: Tensor,
    class_names: tuple[str, ...],
    columns: Columns,
    config: DataConfig,
) -> str:
    """Return sha256 hex over what the files contain and how they are read, but not their location or names.

    Below `CONTENT_LIMIT` bytes in all, every byte counts. From there on (reading ImageNet from S3 would take hours), a
    file counts by its labels, size and footer, which has the place, compressed size and statistics of every column
    chunk.
    """
    read_as = [columns.image, columns.label, list(class_names), *config.pixel_identity]
    hasher = hashlib.sha256(json.dumps(["hf_parquet", *read_as]).encode())
    hasher.update(labels.numpy().data)
    sizes = [info.size for info in filesystem.get_file_info(paths)]
    for path, size in zip(paths, sizes, strict=True):
        hasher.update(f"\n{size}\n".encode())
        with named(path), filesystem.open_input_file(path) as file:
            if sum(sizes) >= CONTENT_LIMIT:
                file.seek(size - 8)
                file.seek(max(0, size - 8 - int.from_bytes(file.read(4), "little")))
            while chunk := file.read(1 << 20):
                hasher.update(chunk)
    return hasher.hexdigest()
