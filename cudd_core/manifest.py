"""The manifest of a folder: which files it holds, and whether they are unchanged."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
from PIL import Image
from pydantic import TypeAdapter
from safetensors import SafetensorError

from cudd_core.errors import ArtifactDamaged, StoreError

MANIFEST_FILE = "manifest.json"

_ALTERED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
"""Error numbers that mean that a file is missing or something else is in its place."""


@dataclass(frozen=True)
class ManifestFile:
    """One file: `path` relative to the folder with forward slashes, size in bytes, sha256 hex."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Contents of a record folder. `digest`: the record's content digest; `files`: all but the manifest, by path."""

    digest: str
    files: tuple[ManifestFile, ...]

    @property
    def total_bytes(self) -> int:
        """Total size of the listed files."""
        return sum(file.bytes for file in self.files)

    def to_json(self) -> bytes:
        """Return the canonical form of this manifest: a manifest file that differs from it was altered."""
        return (json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest and check it alone: it is in canonical form, and every path is inside the folder.

    Raises:
        ArtifactDamaged: the manifest is missing, was altered, or names files elsewhere.
        StoreError: it cannot be read at the moment.
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

    Files that the manifest does not list are ignored.

    Raises:
        ArtifactDamaged: a file is missing or altered; names the first one.
        StoreError: a file cannot be read at the moment.
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


def describe_files(folder: Path, manifest_name: str) -> tuple[ManifestFile, ...]:
    """Return all files in a folder except its manifest, sorted by path. Raises ValueError for a link or a device."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a link or not a file; a record folder holds plain files only")
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (manifest_name, manifest_name + ".tmp"):
            found.append(name)
    return tuple(ManifestFile(p, (folder / p).stat().st_size, _sha256(folder / p)) for p in sorted(found))


@contextmanager
def damage(folder: Path, name: str) -> Iterator[None]:
    """Turn any error of a parser that cannot use the bytes into ArtifactDamaged.

    If the system reports that an existing file cannot be read, for example because of a stale handle on a network share
    or too many open files, the bytes may be intact, so that becomes a StoreError.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactDamaged(f"{folder / name}: missing.") from error
    except (
        # PIL raises SyntaxError for a broken PNG, and an OSError without a number for a truncated one.
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
