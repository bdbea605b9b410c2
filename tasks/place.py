"""Who starts runs, and where: this distinguishes attempts that must be dead from other people's."""

from __future__ import annotations

import functools
import getpass
import hashlib
import re
import secrets
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.folders import writing

USER_TAG, PLACE_TAG = "mlflow.user", "cudd.place"


class Place:
    """A folder of locks between the processes of a machine. Cheap to create."""

    def __init__(self, lock_folder: Path) -> None:
        self.lock_folder = lock_folder

    @functools.cached_property
    def name(self) -> str:
        """The folder's name in the tags of runs: processes with the same name share the same locks.

        Host names change with every container and may not be unique; an id stored in the folder has neither problem.
        The name depends on the path too, since a copy of the folder has the same id.

        Raises:
            ResourceError: the folder cannot be written.
        """
        file = self.lock_folder / "place"
        with writing(self.lock_folder):
            if not file.exists():
                with FileLock(f"{file}.lock"):
                    if not file.exists():
                        new = file.with_suffix(".new")
                        new.write_text(secrets.token_hex(32))
                        new.replace(file)
            text = f"{file.read_text()} {self.lock_folder.resolve()}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def copied_from(self, other: Path) -> bool:
        """Whether this folder is a copy of another folder of locks, which is still there."""
        try:
            same = (other / "place").read_text() == (self.lock_folder / "place").read_text()
        except OSError:
            return False
        return same and other.resolve() != self.lock_folder.resolve()

    @property
    def tags(self) -> dict[str, str]:
        """The tags of a run that say who started it, and where."""
        return {USER_TAG: user_name(), PLACE_TAG: self.name}

    def lock(self, name: str) -> FileLock:
        """Return the lock with that name. A thread other than the one that acquired it may release it."""
        return FileLock(self.lock_folder / f"{name}.lock", thread_local=False)

    def any_held(self, pattern: str) -> bool:
        """Whether a process of this machine holds a lock whose name matches a glob `pattern`."""
        for file in self.lock_folder.glob(f"{pattern}.lock"):
            try:
                with FileLock(file, timeout=0):
                    pass
            except Timeout:
                return True
        return False


def user_name() -> str:
    """Return the owner of this process's attempts: the login name, in characters that MLflow's filters accept."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return re.sub(r"[^\w.@-]", "_", name)
