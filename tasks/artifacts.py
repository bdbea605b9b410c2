"""Files of MLflow runs: uploaded and read back, fetched and verified.

Artifacts in a local folder are verified and read in place; others are downloaded to a cache folder named after the
digest. Either way, every file's sha256 is checked once per process, and again whenever a file changes.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from cudd_core.errors import ArtifactDamaged, StoreError
from cudd_core.manifest import MANIFEST_FILE, verify_folder
from tasks.folders import blame, check_there, local_folder, writing
from tasks.mlflow_calls import Gone
from tasks.mlflow_connection import Connection
from tasks.passwords import redact
from tasks.refs import Ref
from tasks.verified import forget, mark_verified, verify_once

if TYPE_CHECKING:
    from mlflow.entities import Run

_UPLOADS = 3

_log = logging.getLogger("cudd.store")


class Artifacts:
    """The files of one store's runs, with a cache on this machine. Cheap to create.

    `cache_folder`: for verified copies, one folder per digest, and scratch space. `lock_folder`: for locks between the
    processes of this machine. `copy`: whether to copy artifacts to the cache even from a local folder.
    """

    def __init__(self, connection: Connection, cache_folder: Path, lock_folder: Path, *, copy: bool) -> None:
        self._connection = connection
        self._call = connection.call
        self._cache_folder = cache_folder
        self._lock_folder = lock_folder
        self._copy = copy
        self._locations: dict[str, str] = {}

    def remember(self, run: Run) -> None:
        """Note where the files of a run are that was just read or created, which saves a request later."""
        self._locations[run.info.run_id] = run.info.artifact_uri

    def upload(self, ref: Ref, folder: Path) -> None:
        """Upload a record's folder and read it back, so that a FINISHED run is known to be stored byte for byte.

        MLflow's proxy does not compare what arrives with what was sent, and not every S3 server does. Remote artifacts
        are read back into the cache.

        Raises:
            StoreError: the store refused, or returned something other than what was sent.
            ResourceError: no space, or a local folder that cannot be written.
        """
        local = self._read_in_place(self._location(ref))
        for number in range(1, _UPLOADS + 1):
            self._send(ref, folder)
            try:
                if local is not None:
                    verify_once(local, ref.digest)
                else:
                    self.download(ref)
                return
            except ArtifactDamaged as error:
                if number == _UPLOADS:
                    raise StoreError(f"{error} It was uploaded {number} times and never came back as sent.") from error
                _log.warning("uploaded again, since it did not come back as sent: %s", error)

    def fetch_folder(self, ref: Ref) -> Path:
        """Return a local folder with the verified files of `ref`, for reading only.

        Raises:
            ArtifactDamaged: stored bytes are missing or altered.
            StoreError: the store, or the folder of all its artifacts, cannot be reached.
        """
        try:
            return self._fetched_folder(ref)
        except ArtifactDamaged:
            folder = local_folder(self._location(ref))
            if folder is not None:
                check_there(folder.parents[1])
            raise

    def _fetched_folder(self, ref: Ref) -> Path:
        lying = self._read_in_place(self._location(ref))
        if lying is not None:
            verify_once(lying, ref.digest)
            return lying
        folder = self._cache_folder / ref.digest
        if self._cached(ref.digest):
            return folder
        # Threads and processes that want the same artifact share one download.
        with FileLock(self._lock_folder / f"{ref.digest}.lock"):
            if not self._cached(ref.digest):
                self.download(ref)
        return folder

    def lies_here(self, ref: Ref) -> bool:
        """Whether this machine has the files of `ref`, intact or not."""
        return self._read_in_place(self._location(ref)) is not None or (self._cache_folder / ref.digest).is_dir()

    def download(self, ref: Ref) -> None:
        """Download a verified copy into the cache. Raises ArtifactDamaged if two downloads in a row are damaged."""
        try:
            self._download_once(ref)
        except ArtifactDamaged as error:
            # Bytes can also be altered in transit, which is no reason to withdraw what is stored.
            _log.warning("downloaded again: %s", error)
            self._download_once(ref)

    def drop(self, digest: str) -> None:
        """Remove a cached copy, renaming it first so that nobody sees half of it."""
        folder = self._cache_folder / digest
        forget(folder)
        with contextlib.suppress(OSError):
            aside = Path(tempfile.mkdtemp(prefix=".old-", dir=folder.parent))
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, aside / "record")
            shutil.rmtree(aside, ignore_errors=True)

    def delete(self, run_id: str, location: str) -> None:
        """Delete the files of a run, at the URI `location`. Raises StoreError; `Gone` if they no longer exist."""
        self._call(f"removing run {run_id}", self._repository(location).delete_artifacts, bulk=True)

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a folder on the cache's file system, which is removed at the end unless it was moved away."""
        with writing(self._cache_folder):
            self._cache_folder.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix=".tmp-", dir=self._cache_folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _send(self, ref: Ref, folder: Path) -> None:
        repository = self._repository(self._location(ref))
        manifest = folder / MANIFEST_FILE
        aside = folder.with_name(folder.name + ".manifest")
        with writing(folder):
            aside.mkdir()
            os.replace(manifest, aside / MANIFEST_FILE)
        try:
            doing = f"uploading artifacts of run {ref.run_id}"
            self._call(doing, lambda: repository.log_artifacts(str(folder)), bulk=True)
            # The manifest goes last, so that any folder that has one is complete.
            self._call(doing, lambda: repository.log_artifact(str(aside / MANIFEST_FILE)), bulk=True)
        finally:
            os.replace(aside / MANIFEST_FILE, manifest)
            aside.rmdir()

    def _repository(self, location: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        # Creating a repository may already need credentials; if they are missing, report it like any other refusal.
        opening = functools.partial(get_artifact_repository, location, tracking_uri=self._connection.tracking_uri)
        return self._call(f"opening {redact(location)}", opening, bulk=True)

    def _location(self, ref: Ref) -> str:
        if ref.run_id not in self._locations:
            client = self._connection.client
            try:
                run = self._call(f"opening run {ref.run_id}", lambda: client.get_run(ref.run_id))
            except Gone as error:
                raise ArtifactDamaged(f"{ref}: its run no longer exists in {self._call.display_uri}.") from error
            if run.info.lifecycle_stage != "active":
                raise ArtifactDamaged(f"{ref}: its run was deleted from {self._call.display_uri}.")
            self.remember(run)
        return self._locations[ref.run_id]

    def _read_in_place(self, location: str) -> Path | None:
        """Return the folder behind a local artifact URI; None for a remote one, or if artifacts are to be copied."""
        return None if self._copy else local_folder(location)

    def _cached(self, digest: str) -> bool:
        """Whether a verified copy is in the cache; a damaged one is dropped."""
        folder = self._cache_folder / digest
        if not folder.is_dir():
            return False
        try:
            verify_once(folder, digest)
        except StoreError as error:
            _log.warning("cached copy dropped: %s", error)
            self.drop(digest)
            return False
        return True

    def _download_once(self, ref: Ref) -> None:
        client, place = self._connection.client, redact(self._location(ref))
        doing = f"downloading {ref} from {place}"
        listed = self._call(doing, lambda: client.list_artifacts(ref.run_id), bulk=True)
        if MANIFEST_FILE not in {file.path for file in listed}:
            raise ArtifactDamaged(f"{ref}: {place} holds no {MANIFEST_FILE}.")
        with self.scratch() as scratch:
            try:
                self._call(doing, lambda: client.download_artifacts(ref.run_id, "", str(scratch)), bulk=True)
            except Gone as error:
                raise ArtifactDamaged(str(error)) from error
            try:
                verify_folder(scratch, ref.digest)
            except ArtifactDamaged as error:
                raise ArtifactDamaged(f"{ref} in {place}: {error}") from error
            self._into_cache(scratch, ref.digest)

    def _into_cache(self, scratch: Path, digest: str) -> None:
        """Move a verified folder into the cache. If somebody else's copy got there first, that one is just as good."""
        folder = self._cache_folder / digest
        try:
            os.rename(scratch, folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return
            blame(self._cache_folder, error)
        mark_verified(folder, digest)
