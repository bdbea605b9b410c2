"""Record ↔ local folder, with a manifest that proves that nothing was lost or altered.

    record.json                              kind, codec version, plain fields
    tensors.safetensors                      tensors (state dictionaries under their own names)
    data/train-00000-of-00001.parquet        images of Shard and SyntheticSet, Hugging Face layout
    history.parquet                          one row per entry of `history`, float64
    manifest.json                            content digest; path, bytes and sha256 of every other file; written last

`datasets.load_dataset(folder)` opens such a folder as it is. No pickle is written or read. Files that already lie in
the folder (previews, a report) are listed in the manifest too.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import stat
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from pydantic import BaseModel, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cudd_core.errors import ArtifactDamaged, StoreError
from cudd_core.records import Record, Shard, SoftLabels, SyntheticSet
from cudd_core.tensor_files import write_tensors

CODEC_VERSION = 1
"""Raised whenever the layout changes in a way that an older reader would misread."""

RECORD_FILE = "record.json"
TENSOR_FILE = "tensors.safetensors"
# The name that `datasets` recognises before any other pattern, so that it skips the other files of the folder.
IMAGE_FILE = "data/train-00000-of-00001.parquet"
HISTORY_FILE = "history.parquet"
MANIFEST_FILE = "manifest.json"

_KINDS: dict[str, type] = {kind.__name__: kind for kind in typing.get_args(Record)}
_COLUMNS = {"labels": "label", "slices": "slice", "sources": "source", "curricula": "curriculum"}
_IMAGES_PER_ROW_GROUP = 256
_PNG_MODES = {1: "L", 3: "RGB"}
_ALTERED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""What the system says where a file is missing or something else lies in its place."""

Role = Literal["tensor", "state", "history", "plain"]


@dataclass(frozen=True)
class ManifestFile:
    """One file: `path` relative to the folder with forward slashes, size in bytes, sha256 hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a record folder holds. `digest` is the record's content digest; `files` are all others, sorted by path."""

    digest: str
    files: tuple[ManifestFile, ...]

    @property
    def total_bytes(self) -> int:
        """Total size of the listed files."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> bytes:
        """The only spelling of this manifest: a file that differs from it was altered."""
        return (json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n").encode()


def canonical_json(value: object) -> str:
    """Return one text for one value: sorted keys, no spaces, ASCII, lists for tuples, the shortest exact floats.

    Equal numbers have equal texts (1, 1.0; 0.0, -0.0), booleans are not numbers, and NaN and the infinities are
    spelled `{"float": "nan"}`. Configurations are written as their fields.

    Raises:
        TypeError: a value that is none of None, bool, int, float, str, mapping with text keys, list, tuple,
            configuration.

    Example:
        >>> canonical_json({"b": (1, 2.0), "a": 0.1})
        '{"a":0.1,"b":[1,2]}'
    """
    return json.dumps(_canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def _canonical(value: object) -> object:
    # Exact types: a NumPy scalar or an enumeration would otherwise pass as float or str and read back as another type.
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        if value.is_integer():
            return int(value)
        return value if np.isfinite(value) else {"float": repr(value)}
    if isinstance(value, BaseModel):
        return {name: _canonical(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        if not all(type(key) is str for key in value):
            raise TypeError(f"keys of a canonical mapping must be text, not {sorted(map(repr, value))}")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    raise TypeError(f"{value!r} ({type(value).__name__}) has no canonical JSON form")


def content_digest(record: Record) -> str:
    """Return sha256 hex of what a record says: kind, field names, dtypes, shapes, bytes and plain values; no history.

    It does not depend on how PNG, Parquet or safetensors spell them, nor on the order of a state dictionary.
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
                pass  # a log of how the content came about: how often it was written must not change keys downstream
            case "plain":
                text(field, _plain(value))
    return sha.hexdigest()


def write_record(record: Record, folder: Path) -> Manifest:
    """Write `record` into `folder` (made if missing) and then the manifest of all its files; return the manifest.

    Raises:
        OSError: the folder cannot be written or the disk is full.
        ValueError: a record that breaks its own contract (dtype, image shape), or a link among the extra files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {"codec": CODEC_VERSION, "kind": type(record).__name__, "fields": {}}
    tensors: dict[str, Tensor] = {}
    for field, role in _roles(type(record)).items():
        value = getattr(record, field)
        match role:
            case "tensor":
                tensors[field] = value
            case "state":
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
    """Read what `write_record` wrote. Tensors may be backed by the mapped file: copy before changing a folder.

    `verified`: the caller has just run `verify_folder`; sizes, hashes and the content digest are not checked again.

    Raises:
        ArtifactDamaged: anything missing, altered, outside the folder, or of an unknown kind or version.
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
                    values[field] = TypeAdapter(_hints(kind)[field]).validate_json(text, strict=True)
    record = cast(Record, kind(**values))
    if not verified and content_digest(record) != manifest.digest:
        raise ArtifactDamaged(f"{folder}: the record's content does not match the digest in {MANIFEST_FILE}.")
    return record


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest alone: its spelling, and that every path stays inside the folder.

    Raises:
        ArtifactDamaged: no manifest, one that was altered, or one that names files elsewhere.
        StoreError: it cannot be read at present.
    """
    path = folder / MANIFEST_FILE
    with damage(folder, MANIFEST_FILE):
        if path.is_symlink():
            raise ValueError("is a link")
        raw = path.read_bytes()
        manifest = TypeAdapter(Manifest).validate_json(raw, strict=True)
        if manifest.to_json() != raw:
            raise ValueError("was altered: not in canonical form")
        check_paths(manifest.files, MANIFEST_FILE)
    return manifest


def check_paths(files: Iterable[ManifestFile], manifest_name: str) -> None:
    """Raise ValueError unless the paths are sorted, unique, inside the folder, and not the manifest's own."""
    names = [file.path for file in files]
    if names != sorted(set(names)):
        raise ValueError("was altered: paths unsorted or repeated")
    for name in names:
        parts = PurePosixPath(name)
        inside = not parts.is_absolute() and ".." not in parts.parts and "\\" not in name and ":" not in name
        if not inside or "\0" in name or str(parts) != name or name in (".", manifest_name):
            raise ValueError(f"names a path that is not inside the folder: {name!r}")


def verify_folder(folder: Path, digest: str | None = None) -> Manifest:
    """Check every listed file's presence, size and sha256, and the digest if one is expected; return the manifest.

    Files that the manifest does not list are not looked at.

    Raises:
        ArtifactDamaged: naming the first file that is wrong.
        StoreError: a file cannot be read at present.
    """
    manifest = read_manifest(folder)
    if digest is not None and manifest.digest != digest:
        raise ArtifactDamaged(f"{folder / MANIFEST_FILE}: digest {manifest.digest[:12]}… where {digest[:12]}… is due.")
    verify_files(folder, manifest.files)
    return manifest


def verify_files(folder: Path, files: Iterable[ManifestFile]) -> None:
    """Check presence, size and sha256 of files. Raises as `verify_folder`."""
    for file in files:
        with damage(folder, file.path):
            for parent in PurePosixPath(file.path).parents[:-1]:
                if (folder / parent).is_symlink():
                    raise ValueError("lies behind a link")
            status = (folder / file.path).lstat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("is not a regular file")
            if status.st_size != file.bytes:
                raise ValueError(f"has {status.st_size} bytes where {file.bytes} are due")
            if _sha256(folder / file.path) != file.sha256:
                raise ValueError("does not match its sha256")


# ---- records as fields ------------------------------------------------------------------------------------------


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _roles(kind: type) -> dict[str, Role]:
    """How each field of a record is stored, by its annotation."""
    if _KINDS.get(kind.__name__) is not kind:
        raise TypeError(f"{kind} is not a record")
    special: dict[Any, Role] = {
        Tensor: "tensor",
        dict[str, Tensor]: "state",
        tuple[dict[str, float], ...]: "history",
    }
    return {field.name: special.get(_hints(kind)[field.name], "plain") for field in dataclasses.fields(kind)}


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _little_endian(tensor: Tensor) -> Any:
    # One byte view serves every dtype, bfloat16 included, which NumPy does not know.
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    if sys.byteorder == "big":
        data = data.reshape(-1, tensor.element_size()).flip(-1).reshape(-1)
    return data.numpy()


# ---- files ------------------------------------------------------------------------------------------------------


@contextmanager
def damage(folder: Path, name: str) -> Iterator[None]:
    """Turn whatever a parser says of bytes that it cannot use into ArtifactDamaged.

    Not what the system says of a file that is there but cannot be read, such as a stale handle of a network share or
    too many open files: the bytes may be as they were, so that is a StoreError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactDamaged(f"{folder / name}: missing.") from error
    except (
        # PIL says SyntaxError of a broken PNG, and an OSError without a number of one that was cut.
        *(ValueError, KeyError, TypeError, IndexError, OSError, SyntaxError, RecursionError, OverflowError),
        *(pa.ArrowException, SafetensorError, Image.DecompressionBombError),
    ) as error:
        if isinstance(error, OSError) and error.errno is not None and error.errno not in _ALTERED:
            raise StoreError(
                f"{folder / name} cannot be read ({error.strerror}), so nobody knows whether it is as it was. Put that "
                "right and try again; if it is lost for good, remove it."
            ) from error
        raise ArtifactDamaged(f"{folder / name}: {error}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_files(folder: Path, manifest_name: str) -> tuple[ManifestFile, ...]:
    """Return all files of a folder but its manifest, sorted by path. Raises ValueError for a link or a device."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a link or not a file; a record folder holds plain files only")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (manifest_name, manifest_name + ".tmp"):
            found.append(name)
    return tuple(ManifestFile(p, (folder / p).stat().st_size, _sha256(folder / p)) for p in sorted(found))


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
        table = _parquet(folder / HISTORY_FILE).read()
        if table.num_rows != rows or any(column.type != pa.float64() for column in table.columns):
            raise ValueError(f"does not hold {rows} rows of numbers")
        return tuple({name: item for name, item in row.items() if item is not None} for row in table.to_pylist())


def _parquet(path: Path) -> Any:
    return pq.ParquetFile(path, memory_map=True)


# ---- images -----------------------------------------------------------------------------------------------------


def image_schema(class_names: Iterable[str] | None) -> Any:
    """The Arrow schema of image files, with the feature description that `datasets` reads."""
    integer = {"dtype": "int64", "_type": "Value"}
    label = integer if class_names is None else {"names": list(class_names), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, "label": label} | dict.fromkeys(("slice", "source", "curriculum"), integer)
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            *((name, pa.int64()) for name in ("label", "slice", "source", "curriculum")),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def encode_png(image: Tensor) -> bytes:
    """Encode one uint8 [C, H, W] image, C 1 or 3, without loss."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if image.shape[0] == 1 else pixels).save(stream, "PNG")
    return stream.getvalue()


def decode_png(data: bytes, shape: tuple[int, int, int]) -> Tensor:
    """Decode a PNG that must have `shape` [C, H, W]; return uint8. Raises ValueError, OSError or SyntaxError."""
    channels, height, width = shape
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        # Checked before any pixel is decompressed.
        if image.mode != _PNG_MODES[channels] or image.size != (width, height):
            raise ValueError(f"an image is {image.mode} {image.size}, not {_PNG_MODES[channels]} {width, height}")
        pixels = np.array(image)
    return torch.from_numpy(pixels.reshape(height, width, channels)).permute(2, 0, 1)


def write_images(record: Shard | SyntheticSet, path: Path) -> None:
    """Write the images of a record, with their labels and places, as Parquet in the Hugging Face image layout.

    Raises:
        OSError: the file cannot be written or the disk is full.
        ValueError: a record that breaks its own contract (dtype, shape).
    """
    images = record.images.detach().cpu()
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in _PNG_MODES:
        raise ValueError(f"images must be uint8 [n, 1 or 3, H, W], not {images.dtype} {list(images.shape)}")
    columns = {column: getattr(record, field) for field, column in _COLUMNS.items() if hasattr(record, field)}
    if isinstance(record, Shard):
        columns["curriculum"] = torch.full_like(record.labels, record.curriculum)
    for name, value in columns.items():
        if value.dtype != torch.int64 or value.shape != images.shape[:1]:
            raise ValueError(f"{name} must be int64 [{len(images)}], not {value.dtype} {list(value.shape)}")
    schema = image_schema(record.class_names if isinstance(record, SyntheticSet) else None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(images), _IMAGES_PER_ROW_GROUP):
            rows = slice(start, start + _IMAGES_PER_ROW_GROUP)
            part = {name: value[rows].tolist() for name, value in columns.items()}
            names = [f"{s:05d}_{k:05d}.png" for s, k in zip(part["slice"], part["label"], strict=True)]
            pictures = [{"bytes": encode_png(x), "path": n} for x, n in zip(images[rows], names, strict=True)]
            writer.write_table(pa.Table.from_pydict({"image": pictures, **part}, schema=schema))


def read_images(path: Path, shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """Read what `write_images` wrote of images of `shape` [n, C, H, W]: `images` uint8; the other columns int64 [n].

    Raises:
        ValueError, OSError, SyntaxError, pyarrow.ArrowException: other columns or another shape, or a damaged file.
    """
    count, channels, height, width = shape
    with _parquet(path) as file:
        if file.metadata.num_rows != count or not file.schema_arrow.equals(image_schema(None)):
            raise ValueError(f"does not hold {count} images in the expected columns")
        images = torch.empty((count, channels, height, width), dtype=torch.uint8)
        columns: dict[str, list[int]] = {name: [] for name in _COLUMNS.values()}
        row = 0
        for batch in file.iter_batches(_IMAGES_PER_ROW_GROUP):
            for picture in batch.column("image").field("bytes"):
                images[row] = decode_png(picture.as_buffer(), (channels, height, width))
                row += 1
            for name, numbers in columns.items():
                numbers.extend(batch.column(name).to_pylist())
    tensors = {field: torch.tensor(columns[column], dtype=torch.int64) for field, column in _COLUMNS.items()}
    return {"images": images} | tensors
