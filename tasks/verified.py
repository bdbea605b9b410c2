"""Record folders whose files' sha256 this process has checked. They are checked again whenever a file changes."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from cudd_core.errors import StoreError
from cudd_core.manifest import MANIFEST_FILE, damage, read_manifest, verify_folder

Signature = tuple[tuple[str, int, int, int], ...]
# Folder → the digest that was checked, and what the files looked like then. Shared by all Store objects: a Ray worker
# unpickles one per task.
_verified: dict[Path, tuple[str, Signature]] = {}
_lock = threading.Lock()


def verify_once(folder: Path, digest: str) -> None:
    """Verify a folder, unless this process has and no file looks different since. Raises like `verify_folder`."""
    signature = _signature(folder)
    with _lock:
        if _verified.get(folder) == (digest, signature):
            return
    verify_folder(folder, digest)
    with _lock:
        _verified[folder] = (digest, signature)


def mark_verified(folder: Path, digest: str) -> None:
    """Mark a folder as verified whose files were checked before they were moved here; not if it has vanished."""
    with _lock, contextlib.suppress(StoreError):
        _verified[folder] = (digest, _signature(folder))


def forget(folder: Path) -> None:
    """Mark a folder as not verified."""
    with _lock:
        _verified.pop(folder, None)


def _signature(folder: Path) -> Signature:
    """Return inode, size and time of each of a folder's files, which change if one is written, replaced or removed."""
    names = [MANIFEST_FILE, *(file.path for file in read_manifest(folder).files)]
    rows = []
    for name in names:
        with damage(folder, name):
            status = (folder / name).lstat()
        rows.append((name, status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(rows)
