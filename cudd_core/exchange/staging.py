"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cudd_core.errors import ConfigError, ResourceError


@contextmanager
def staged_folder(target: Path, force: bool, irreplaceable: Callable[[Path], str]) -> Iterator[Path]:
    """Yield a new folder beside `target` that becomes `target` at the end, or is removed if the body fails.

    A `target` that is not empty is replaced only with `force`, and only if `irreplaceable` gives no reason against it.

    Raises:
        ConfigError: `target` is not a folder, or, at the beginning or the end, is not empty and must not be replaced.
        ResourceError: it cannot be written, or the disk is full.
    """
    target = Path(os.path.abspath(target.expanduser()))
    _check(target, force, irreplaceable)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise ResourceError(f"{target.parent} cannot be written ({error.strerror}). Choose another folder.") from error
    try:
        yield scratch
        # mkdtemp makes it private, but a folder with the usual permissions is wanted.
        scratch.chmod(0o777 & ~_umask())
        _check(target, force, irreplaceable)  # the body may have taken hours
        _put_in_place(scratch, target)
    except OSError as error:
        if error.filename is None or Path(os.fsdecode(error.filename)).is_relative_to(target.parent):
            raise ResourceError(f"{target} cannot be written ({error.strerror or error}).") from error
        raise ResourceError(f"{error.filename}: {error.strerror}. Nothing was written to {target}.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(target: Path, force: bool, irreplaceable: Callable[[Path], str]) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise ConfigError(f"{target} is a file or a link. Give a folder that does not exist yet.")
    if not any(target.iterdir()):
        return
    if reason := irreplaceable(target):
        raise ConfigError(f"{target} is not empty and {reason}. Give a folder that does not exist yet.")
    if not force:
        raise ConfigError(f"{target} holds an export already. Add --force to replace it, or give another folder.")


def _put_in_place(scratch: Path, target: Path) -> None:
    if not target.exists():
        scratch.rename(target)
        return
    # Two renames: whenever this is interrupted, the old or the new folder is complete under some name.
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    try:
        target.rename(aside / "old")
        scratch.rename(target)
    except BaseException:
        if (aside / "old").exists():
            (aside / "old").rename(target)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value
