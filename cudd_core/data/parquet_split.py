"""Encoded images in row groups of Parquet files, read on demand."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSystem
from torch import Tensor

from cudd_core.data.encoded import EncodedSplit
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError

ENCODED_CACHE = 256 << 20
"""Bytes of encoded row groups that a split keeps in memory (at least the last two read)."""


@dataclass(frozen=True)
class Columns:
    """The image column, whether it is struct<bytes, path>, the label column, and the ClassLabel names if stored."""

    image: str
    nested: bool
    label: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class ParquetPart:
    """One file of a split, with its footer. It is open only while being read, since a split may have thousands."""

    filesystem: FileSystem
    path: str
    metadata: pq.FileMetaData

    @contextmanager
    def opened(self) -> Iterator[pq.ParquetFile]:
        """Open the file; errors name it."""
        with named(self.path), self.filesystem.open_input_file(self.path) as source:
            yield pq.ParquetFile(source, metadata=self.metadata)


class ParquetSplit(EncodedSplit):
    """Images in row groups of Parquet files, read on demand; `files` are in order."""

    def __init__(
        self,
        files: list[ParquetPart],
        columns: Columns,
        labels: Tensor,
        class_names: tuple[str, ...],
        config: DataConfig,
        digest: str,
    ) -> None:
        super().__init__(labels, class_names, config, digest)
        self._files = files
        self._columns = columns
        self._groups = [
            (number, group) for number, file in enumerate(files) for group in range(file.metadata.num_row_groups)
        ]
        rows = [files[number].metadata.row_group(group).num_rows for number, group in self._groups]
        self._starts = list(accumulate(rows, initial=0))
        self._reading = threading.Lock()
        self._held: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def encoded(self, index: int) -> tuple[str, bytes]:
        """Return FILE, row N and the bytes of that row's image."""
        place = bisect_right(self._starts, index) - 1
        file_number, _ = self._groups[place]
        value = self._row_group(place)[index - self._starts[place]].as_py()
        first_of_file = self._starts[bisect_left(self._groups, (file_number, 0))]
        name = f"{self._files[file_number].path}, row {index - first_of_file}"
        if value is None:
            raise DataError(
                f"{name} holds no image bytes in column {self._columns.image!r}. Images must be embedded: "
                "save the data set with its images, not with paths to them."
            )
        return name, value

    def _row_group(self, place: int) -> pa.ChunkedArray:
        with self._reading:
            if place in self._held:
                self._held.move_to_end(place)
                return self._held[place]
            file_number, group = self._groups[place]
            image = self._columns.image
            with self._files[file_number].opened() as file:
                table = file.read_row_group(group, columns=[f"{image}.bytes" if self._columns.nested else image])
            column = table.column(image)
            self._held[place] = column.flatten()[0] if self._columns.nested else column
            while len(self._held) > 2 and sum(column.nbytes for column in self._held.values()) > ENCODED_CACHE:
                self._held.popitem(last=False)
            return self._held[place]


@contextmanager
def named(path: str) -> Iterator[None]:
    """Turn pyarrow's errors in the body into a DataError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read ({error}). Check that it is there, readable and a whole Parquet file."
        ) from error
