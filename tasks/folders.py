"""Local folders: which one a URI names, whether it can be written, and the error if it cannot."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shlex
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from cudd_core.errors import ResourceError, StoreError
from tasks.addresses import home_folder, tracking_uri


def local_folder(uri: str) -> Path | None:
    """Return the folder that a URI or a plain path names on this machine; None if it is elsewhere."""
    parts = urllib.parse.urlsplit(uri)
    return Path(urllib.request.url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def check_writable(folder: Path) -> None:
    """Create `folder` if missing and prove that it can be written. Raises ResourceError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")


def check_home(folder: Path) -> None:
    """Create the home folder if missing, for this user only, and prove that it can be written and supports locks.

    Raises:
        ResourceError: it cannot.
    """
    with writing(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds images of the data, and what passwords open
    check_writable(folder)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
                raise
            raise ResourceError(
                f"The file system of {folder} has no locks (flock), which keep tasks and runs from each other. Mount "
                "it with them (Lustre: -o flock), or choose another home folder with CUDD_HOME."
            ) from error


def check_there(folder: Path) -> None:
    """Raise StoreError if the folder of all artifacts is missing: it may be unmounted, and its contents not lost."""
    if not folder.is_dir():
        if link := _link_to_home(folder):
            raise StoreError(
                f"The artifacts of this store lie in {folder}, which is not there, but a folder of that name lies in "
                f"{home_folder()}: this home was moved or copied, and its database names the old place. Let the old "
                f"name lead to the new place, then run the same command again:\n\n    {link}"
            )
        raise StoreError(
            f"The artifacts of this store lie in {folder}, which is not there: a share that is not mounted, or a "
            "folder of another machine. Bring it back and run the same command again. Make it anew, empty, only if "
            "what was in it is lost: all of it is then computed again."
        )


def _link_to_home(folder: Path) -> str | None:
    """Return the command that restores the artifact folder of a moved home; None if the home has no such folder.

    Also None if the database is outside the home: it was not moved along, so a folder here may be another store's.
    """
    home = home_folder()
    if not tracking_uri(home).startswith(f"sqlite:///{home}/"):
        return None
    folder = folder.resolve()  # for a link that a second move has broken, its target
    for old in folder.parents:
        if (home / folder.relative_to(old)).is_dir():
            # Part of the old path may exist again; the link is made where nothing exists.
            missing = next(path for path in (old, *reversed(folder.parents), folder) if not path.exists())
            made = "" if missing.parent.exists() else f"mkdir -p {shlex.quote(str(missing.parent))} && "
            there = home / missing.relative_to(old)
            return f"{made}ln -s {shlex.quote(str(there))} {shlex.quote(str(missing))}"
    return None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn any OSError inside the block into a ResourceError about `folder`."""
    try:
        yield
    except OSError as error:
        blame(folder, error)


def blame(folder: Path, error: OSError) -> NoReturn:
    """Raise a ResourceError that names `folder` and says what to do."""
    what = f"{error.strerror or error}. Free some space or make it writable"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        file = next(path for path in (folder, *folder.parents) if path.exists())
        what = f"{file} is a file. Move it away"
    raise ResourceError(f"Folder {folder}: {what}, or choose another home folder with CUDD_HOME.") from error
