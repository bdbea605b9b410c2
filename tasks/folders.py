"""Local folders: which of them a URI names, whether they can be written, and what is said where they cannot."""

from __future__ import annotations

import contextlib
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from cudd_core.errors import ResourceError, StoreError


def local_folder(uri: str) -> Path | None:
    """Return the folder that a URI or a plain path names on this machine; None for what lies elsewhere."""
    parts = urllib.parse.urlsplit(uri)
    return Path(urllib.request.url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def check_writable(folder: Path) -> None:
    """Make `folder` if missing and prove that it can be written. Raises ResourceError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")


def check_there(folder: Path) -> None:
    """Raise StoreError unless the folder of all artifacts is there: what it holds is not lost because it is away."""
    if not folder.is_dir():
        raise StoreError(
            f"The artifacts of this store lie in {folder}, which is not there: a share that is not mounted, or a "
            "folder of another machine. Bring it back and run the same command again. Make it anew, empty, only if "
            "what was in it is lost: all of it is then computed again."
        )


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the system's errors inside the block into a ResourceError about `folder`."""
    try:
        yield
    except OSError as error:
        blame(folder, error)


def blame(folder: Path, error: OSError) -> NoReturn:
    """Raise a ResourceError that names `folder` and says what to do."""
    raise ResourceError(
        f"Folder {folder}: {error.strerror or error}. Free some space or make it writable, or choose another home "
        "folder with CUDD_HOME."
    ) from error
