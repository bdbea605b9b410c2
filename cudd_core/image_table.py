"""Images as a Parquet table of PNG files, in the layout of Hugging Face's `datasets`."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from cudd_core.image_threads import decode_into, for_each_image
from cudd_core.records import Shard, SyntheticSet
from cudd_core.returned import empty_images

# `datasets` recognises this name before any other pattern, so it skips the other files in the folder.
IMAGE_FILE = "data/train-00000-of-00001.parquet"

COLUMNS = {"labels": "label", "slices": "slice", "sources": "source", "curricula": "curriculum"}
_IMAGES_PER_ROW_GROUP = 256
_PNG_MODES = {1: "L", 3: "RGB"}


def image_schema(class_names: Iterable[str] | None) -> Any:
    """The Arrow schema of image files, with the feature description that `datasets` reads."""
    integer = {"dtype": "int64", "_type": "Value"}
    label = integer if class_names is None else {"names": distinct(class_names), "_type": "ClassLabel"}
    features = {"image": {"_type": "Image"}, **dict.fromkeys(COLUMNS.values(), integer), "label": label}
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            *((name, pa.int64()) for name in COLUMNS.values()),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


def distinct(names: Iterable[str]) -> list[str]:
    """Return the names made unique, as `datasets` requires: a name that classes share gets the class number appended.

    Example:
        >>> distinct(["crane", "dog", "crane"])
        ['crane (0)', 'dog', 'crane (2)']
    """
    given = list(names)
    counts = Counter(given)
    made = [name if counts[name] == 1 else f"{name} ({label})" for label, name in enumerate(given)]
    return made if len(set(made)) == len(made) else [f"{name} ({label})" for label, name in enumerate(given)]


def to_pillow(image: Tensor) -> Image.Image:
    """Return one uint8 [C, H, W] image, C 1 or 3, as Pillow's."""
    pixels = image.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels[:, :, 0] if image.shape[0] == 1 else pixels)


def encode_png(image: Tensor) -> bytes:
    """Encode one uint8 [C, H, W] image, C 1 or 3, without loss."""
    stream = io.BytesIO()
    to_pillow(image).save(stream, "PNG")
    return stream.getvalue()


def encode_pngs(images: Tensor) -> list[bytes]:
    """Encode uint8 [n, C, H, W] images as `encode_png` does each."""
    files = [b""] * len(images)

    def encode(index: int) -> None:
        files[index] = encode_png(images[index])

    for_each_image(images, encode)
    return files


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
    """Write a record's images, labels, slices, sources and curricula as Parquet in the Hugging Face image layout.

    Raises:
        OSError: the file cannot be written or the disk is full.
        ValueError: the record violates its contract (dtype, shape).
    """
    images = record.images.detach().cpu()
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in _PNG_MODES:
        raise ValueError(f"images must be uint8 [n, 1 or 3, H, W], not {images.dtype} {list(images.shape)}")
    columns = {column: getattr(record, field) for field, column in COLUMNS.items() if hasattr(record, field)}
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
            files = encode_pngs(images[rows])
            pictures = [{"bytes": data, "path": name} for data, name in zip(files, names, strict=True)]
            writer.write_table(pa.Table.from_pydict({"image": pictures, **part}, schema=schema))


def read_images(path: Path, shape: tuple[int, int, int, int]) -> dict[str, Tensor]:
    """Read a file of `write_images` with images of `shape` [n, C, H, W]: `images` uint8; the other columns int64 [n].

    Raises:
        ValueError, OSError, SyntaxError, pyarrow.ArrowException: unexpected columns or shape, or a damaged file.
    """
    count, channels, height, width = shape
    with pq.ParquetFile(path, memory_map=True) as file:
        if file.metadata.num_rows != count or not file.schema_arrow.equals(image_schema(None)):
            raise ValueError(f"does not hold {count} images in the expected columns")
        images = empty_images(shape)
        columns: dict[str, list[int]] = {name: [] for name in COLUMNS.values()}
        row = 0
        for batch in file.iter_batches(_IMAGES_PER_ROW_GROUP):
            files = batch.column("image").field("bytes")

            def decode(index: int, files: Any = files) -> Tensor:
                return decode_png(files[index].as_buffer(), (channels, height, width))

            decode_into(images[row : row + len(files)], range(len(files)), decode)
            row += len(files)
            for name, numbers in columns.items():
                numbers.extend(batch.column(name).to_pylist())
    tensors = {field: torch.tensor(columns[column], dtype=torch.int64) for field, column in COLUMNS.items()}
    return {"images": images} | tensors
