"""Record ↔ local folder, with a manifest to verify that nothing was lost or altered.

    record.json                              kind, codec version, plain fields
    tensors.safetensors                      tensors (state dictionaries under their own names)
    data/train-00000-of-00001.parquet        images of Shard and SyntheticSet, Hugging Face layout
    history.parquet                          one row per entry of `history`, float64
    manifest.json                            content digest; path, bytes and sha256 of every other file; written last

`datasets.load_dataset(folder)` opens such a folder directly. No pickle is written or read. Files that are already in
the folder (previews, a report) are listed in the manifest too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import typing
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file
from torch import Tensor

from cudd_core.canonical import canonical_json
from cudd_core.errors import ArtifactDamaged
from cudd_core.image_table import IMAGE_FILE, read_images, write_images
from cudd_core.manifest import MANIFEST_FILE, Manifest, damage, describe_files, read_manifest, verify_folder
from cudd_core.records import Record, Shard, SoftLabels, SyntheticSet
from cudd_core.tensor_files import write_tensors

CODEC_VERSION = 1
"""Incremented whenever the layout changes in a way that an older reader would misread."""

RECORD_FILE = "record.json"
TENSOR_FILE = "tensors.safetensors"
HISTORY_FILE = "history.parquet"

_KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Record)}

Role = Literal["tensor", "state", "history", "plain"]


def content_digest(record: Record) -> str:
    """Return sha256 hex of a record's content: kind, field names, dtypes, shapes, bytes, plain values; no history.

    It does not depend on how PNG, Parquet or safetensors encode the content, nor on the order of a state dictionary.
    """
    sha = hashlib.sha256()

    def text(*parts: object) -> None:
        line = canonical_json(parts).encode()
        sha.update(len(line).to_bytes(8, "little") + line)

    def tensor(field: str, name: str, value: Tensor) -> None:
        text(field, name, str(value.dtype).removeprefix("torch."), list(value.shape))
        sha.update(_little_endian(value))

    text("record", type(record).__name__)
    for field, role in _roles(type(record)).items():
        value = getattr(record, field)
        match role:
            case "tensor":
                tensor(field, "", value)
            case "state":
                for name in sorted(value):
                    tensor(field, name, value[name])
            case "history":
                pass  # a log of how the content was made: how often it was written must not change keys downstream
            case "plain":
                text(field, _plain(value))
    return sha.hexdigest()


def write_record(record: Record, folder: Path) -> Manifest:
    """Write `record` into `folder` (created if missing), then the manifest of all its files; return the manifest.

    Raises:
        OSError: the folder cannot be written or the disk is full.
        ValueError: the record violates its contract (dtype, image shape), or there is a link among the extra files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"codec": CODEC_VERSION, "kind": type(record).__name__, "fields": {}}
    tensors: dict[str, Tensor] = {}
    roles = _roles(type(record))
    for field, role in roles.items():
        value = getattr(record, field)
        match role:
            case "tensor":
                tensors[field] = value
            case "state":
                if taken := {name for name in value if roles.get(name) == "tensor"}:
                    raise ValueError(f"{field} has names that are fields of the record: {', '.join(sorted(taken))}")
                document["state"] = list(value)
                tensors.update(value)
            case "history":
                document["history_rows"] = len(value)
                _write_history(value, folder / HISTORY_FILE)
            case "plain":
                document["fields"][field] = _plain(value)
    if isinstance(record, Shard | SyntheticSet):
        document["images"] = list(record.images.shape)
        write_images(record, folder / IMAGE_FILE)
    else:
        if isinstance(record, SoftLabels) and record.logits.dtype != torch.float16:
            raise ValueError(f"SoftLabels.logits must be float16, not {record.logits.dtype}")
        if tensors:
            write_tensors(tensors, folder / TENSOR_FILE)
    (folder / RECORD_FILE).write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    manifest = Manifest(digest=content_digest(record), files=describe_files(folder, MANIFEST_FILE))
    temporary = folder / (MANIFEST_FILE + ".tmp")
    temporary.write_bytes(manifest.to_json())
    os.replace(temporary, folder / MANIFEST_FILE)
    return manifest


def read_record(folder: Path, *, verified: bool = False) -> Record:
    """Read what `write_record` wrote. Tensors may be backed by the mapped file: copy them before changing the folder.

    `verified`: the caller has just run `verify_folder`; sizes, hashes and the content digest are not checked again.

    Raises:
        ArtifactDamaged: anything is missing, altered, outside the folder, or of an unknown kind or version.
    """
    manifest = read_manifest(folder) if verified else verify_folder(folder)
    listed = {file.path for file in manifest.files}
    document = _read_document(folder, listed)
    kind = _KINDS[document["kind"]]
    values: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    if issubclass(kind, Shard | SyntheticSet):
        with damage(folder, IMAGE_FILE):
            count, channels, height, width = (int(size) for size in document["images"])
            tensors = read_images(folder / IMAGE_FILE, (count, channels, height, width))
        tensors = {field: tensors[field] for field in tensors if field in _roles(kind)}
    elif TENSOR_FILE in listed:
        with damage(folder, TENSOR_FILE):
            tensors = load_file(folder / TENSOR_FILE)
    with damage(folder, RECORD_FILE):
        for field, role in _roles(kind).items():
            match role:
                case "tensor":
                    values[field] = tensors[field]
                case "state":
                    values[field] = {name: tensors[name] for name in document["state"]}
                case "history":
                    values[field] = _read_history(folder, listed, document["history_rows"])
                case "plain":
                    text = json.dumps(document["fields"][field])
                    values[field] = TypeAdapter(typing.get_type_hints(kind)[field]).validate_json(text, strict=True)
    record = cast(Record, kind(**values))
    if not verified and content_digest(record) != manifest.digest:
        raise ArtifactDamaged(f"{folder}: the record's content does not match the digest in {MANIFEST_FILE}.")
    return record


# ---- records as fields ------------------------------------------------------------------------------------------


def _roles(kind: type) -> dict[str, Role]:
    """Return how each field of a record is stored, which follows from its annotation."""
    if _KINDS.get(kind.__name__) is not kind:
        raise TypeError(f"{kind} is not a record")
    special: dict[Any, Role] = {
        Tensor: "tensor",
        dict[str, Tensor]: "state",
        tuple[dict[str, float], ...]: "history",
    }
    return {name: special.get(hint, "plain") for name, hint in typing.get_type_hints(kind).items()}


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _little_endian(tensor: Tensor) -> Any:
    # A byte view works for every dtype, including bfloat16, which NumPy does not have.
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if sys.byteorder == "big":
        data = data.reshape(-1, tensor.element_size()).flip(-1).reshape(-1)
    return data.numpy()


# ---- files ------------------------------------------------------------------------------------------------------


def _read_document(folder: Path, listed: set[str]) -> dict[str, Any]:
    if RECORD_FILE not in listed:
        raise ArtifactDamaged(f"{folder / MANIFEST_FILE}: does not list {RECORD_FILE}.")
    with damage(folder, RECORD_FILE):
        document = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("is not a JSON object")
        if document.get("codec") != CODEC_VERSION:
            raise ValueError(f"has codec version {document.get('codec')!r}; this software reads {CODEC_VERSION}")
        if document.get("kind") not in _KINDS:
            raise ValueError(f"holds an unknown kind of record, {document.get('kind')!r}")
        plain = {field for field, role in _roles(_KINDS[document["kind"]]).items() if role == "plain"}
        if set(document["fields"]) != plain:
            raise ValueError(f"has fields {sorted(document['fields'])} where {sorted(plain)} are due")
    return document


def _write_history(rows: tuple[dict[str, float], ...], path: Path) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    if names:
        columns = [pa.array([row.get(name) for row in rows], pa.float64()) for name in names]
        pq.write_table(pa.Table.from_arrays(columns, names=names), path)


def _read_history(folder: Path, listed: set[str], rows: int) -> tuple[dict[str, float], ...]:
    if HISTORY_FILE not in listed:
        return tuple({} for _ in range(rows))
    with damage(folder, HISTORY_FILE):
        table = pq.ParquetFile(folder / HISTORY_FILE, memory_map=True).read()
        if table.num_rows != rows or any(column.type != pa.float64() for column in table.columns):
            raise ValueError(f"does not hold {rows} rows of numbers")
        return tuple({name: item for name, item in row.items() if item is not None} for row in table.to_pylist())
