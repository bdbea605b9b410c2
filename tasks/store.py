"""MLflow as the only store: one MLflow run per attempt at a stage key, besides those of pipeline runs.

A stage's output exists for readers from the moment its run's status becomes FINISHED.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cudd_core.codec import read_record, write_record
from cudd_core.collection import uncollected
from cudd_core.errors import ArtifactDamaged, Cancelled, ConfigError, CuddError, StoreError
from cudd_core.records import Record
from tasks.addresses import artifact_root, home_folder, is_server, tracking_uri
from tasks.artifacts import Artifacts
from tasks.folders import writing
from tasks.ledger import SECONDS, Attempt, Ledger
from tasks.mlflow_calls import Gone
from tasks.mlflow_connection import Connection
from tasks.mlflow_runs import MetricRow, MlflowRuns
from tasks.passwords import redact
from tasks.pipeline_runs import RUNS_EXPERIMENT, PipelineRuns
from tasks.place import PLACE_TAG, USER_TAG, Place, user_name
from tasks.refs import Ref
from tasks.verified import forget

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

STAGES_EXPERIMENT = "cudd-stages"
SETTLE_SECONDS = 5.0
"""How long two writers that meet at one key wait for each other; longer than it takes to set a status."""

_KEY, _STAGE, _STATE, _DIGEST, _BYTES = "cudd.key", "cudd.stage", "cudd.state", "cudd.digest", "cudd.bytes"
_DAMAGED, _REPLACES, _REASON = "cudd.damaged", "cudd.replaces", "cudd.reason"
_HEX = re.compile(r"[0-9a-f]{64}")
_STALE_SECONDS = 24 * 3600
_SETTLE_POLL = 0.2

_log = logging.getLogger("cudd.store")


@dataclass(frozen=True)
class Standing:
    """What a store holds for one key: its output, if there is one, and the attempts that are RUNNING."""

    ref: Ref | None
    running: tuple[Run, ...]


class Store:
    """A tracking server or database, with a local cache. Cheap to create, picklable; connects on first use.

    Its own methods handle stage outputs; `pipelines` handles the pipeline runs that they were made for.

    `tracking_uri`: MLflow's. `cache_folder`: downloads and scratch space; its parent also holds `work`, `decoded` and
    `locks`. `artifact_root`: where new experiments keep artifacts, a URI or a folder; None leaves it to the tracking
    server. `copy_artifacts`: whether to copy artifacts to the cache even from a local folder, for one on a slow network
    share.
    """

    def __init__(
        self,
        tracking_uri: str,
        cache_folder: Path,
        artifact_root: str | None = None,
        experiment: str = STAGES_EXPERIMENT,
        *,
        copy_artifacts: bool = False,
    ) -> None:
        self.tracking_uri = tracking_uri
        self.cache_folder = cache_folder.expanduser().absolute()
        self.artifact_root = artifact_root
        self.experiment = experiment
        self.copy_artifacts = copy_artifacts
        self._connection = Connection(
            tracking_uri, artifact_root, (experiment, RUNS_EXPERIMENT), (self.cache_folder, self.lock_folder)
        )
        self._runs = MlflowRuns(self._connection)
        self._artifacts = Artifacts(self._connection, self.cache_folder, self.lock_folder, copy=copy_artifacts)
        self._place = Place(self.lock_folder)
        self.pipelines = PipelineRuns(self._connection, self._artifacts, self._place)

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[object, ...]]:
        return _rebuild, (
            *(self.tracking_uri, self.cache_folder, self.artifact_root, self.experiment),
            self.copy_artifacts,
        )

    @classmethod
    def from_environment(cls, home: Path | None = None) -> Store:
        """Return the store that MLFLOW_TRACKING_URI, CUDD_ARTIFACT_ROOT, CUDD_COPY_ARTIFACTS and CUDD_HOME describe.

        Without a tracking URI: SQLite under `home` (default: $CUDD_HOME, else ~/.cudd). Without an artifact root: a
        folder under `home`, unless there is a tracking server, which then decides.
        """
        home = (home or home_folder()).expanduser().absolute()
        uri = tracking_uri(home)
        root = artifact_root()
        if not root and not is_server(uri):
            # Without a server, MLflow's own default would be ./mlruns in whatever the current folder is.
            root = str(home / "artifacts")
        copy = os.environ.get("CUDD_COPY_ARTIFACTS", "") not in ("", "0")
        return cls(uri, home / "cache", root or None, copy_artifacts=copy)

    @property
    def client(self) -> MlflowClient:
        """MLflow's own client, connected. Its requests are neither queued nor repeated."""
        return self._connection.client

    @property
    def output_folder(self) -> Path:
        """Where outputs take up space on this machine: the artifacts' folder if it is local, else the cache."""
        self.connect()
        return self._connection.artifacts_folder or self.cache_folder

    @property
    def display_uri(self) -> str:
        """The tracking URI without a password, for messages and links."""
        return self._connection.call.display_uri

    @property
    def work_folder(self) -> Path:
        """Where stages keep resumable checkpoints, one folder per key."""
        return self.cache_folder.parent / "work"

    @property
    def decoded_folder(self) -> Path:
        """Decoded images of data sources, which any process of this home may use."""
        return self.cache_folder.parent / "decoded"

    @property
    def lock_folder(self) -> Path:
        """Locks between the processes of this machine."""
        return self.cache_folder.parent / "locks"

    def connect(self) -> Store:
        """Connect to the store, create its database and experiments if they are missing, and return self.

        Every other method connects too; call this at the start of a run to learn at once what is wrong.

        Raises:
            StoreError: the tracking server or database cannot be reached or refuses.
            ResourceError: a local folder cannot be written.
        """
        self._connection.open()
        return self

    # ---- attempts at a key, and their commit --------------------------------------------------------------------

    def lookup(self, key: str) -> Ref | None:
        """Return the output stored under `key`, or None. Of several, the first to finish, so that all readers agree."""
        return self.standing(key).ref

    def standing(self, key: str) -> Standing:
        """Return the output, as `lookup` does, and the attempts that are RUNNING, in one request."""
        runs = self.runs(key)
        found = [attempt.ref for attempt in self._attempts(runs) if attempt.ref is not None]
        for extra in found[1:]:
            self._retire(extra, found[0])
        return Standing(found[0] if found else None, tuple(run for run in runs if run.info.status == "RUNNING"))

    def begin(
        self,
        key: str,
        stage: str,
        *,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, str] | None = None,
        standing: Standing | None = None,
    ) -> str:
        """Start an attempt at `key`, a RUNNING run that readers of outputs do not see, and return its id.

        The caller holds this machine's lock on the key, so earlier attempts from here that are still RUNNING were
        killed; they are marked KILLED. `standing`: that of `key`, read while holding the lock; None: read it.
        """
        if not _HEX.fullmatch(key):
            raise ValueError(f"{key!r} is not a stage key")
        self._kill_stale((standing or self.standing(key)).running)
        start = {_KEY: key, _STAGE: stage, _STATE: "running", **self._place.tags, **(tags or {})}
        run = self._runs.start(self.experiment, f"{stage} {key[:8]}", start)
        self._artifacts.remember(run)
        run_id: str = run.info.run_id
        self._runs.log(run_id, params=params)
        return run_id

    def abandon(self, attempt: str, error: BaseException) -> None:
        """End an attempt that failed (FAILED, with the reason) or was stopped (KILLED)."""
        stopped = isinstance(error, Cancelled) or not isinstance(error, Exception)
        reason = f"{type(error).__name__}: {error}"
        # The error being handled matters more than a failure to mark the run.
        with contextlib.suppress(CuddError):
            self._runs.log(attempt, tags={_REASON: reason})
            self._runs.end(attempt, "KILLED" if stopped else "FAILED")

    def commit(
        self,
        key: str,
        stage: str,
        record: Record,
        *,
        attempt: str | None = None,
        extra: Path | None = None,
        metrics: Iterable[MetricRow] = (),
        replaces: Ref | None = None,
    ) -> Ref:
        """Store `record` under `key` in the run `attempt` (default: a new one), with the files of the folder `extra`.

        Return its reference. If another writer of the same key finished first, theirs is returned (`reused` is True)
        and this attempt is marked KILLED. `replaces`: the key's output so far, which readers see until this one is
        FINISHED.

        Raises:
            StoreError: the store refused; the attempt is marked FAILED and does not exist for readers.
            ResourceError: no space, or a local folder that cannot be written.
        """
        run_id = attempt or self.begin(key, stage)
        with self._artifacts.scratch() as scratch:
            try:
                with writing(scratch):
                    if extra is not None and extra.is_dir():
                        shutil.copytree(extra, scratch, dirs_exist_ok=True)
                    manifest = write_record(record, scratch)
                self._artifacts.upload(Ref(stage, key, run_id, manifest.digest, manifest.total_bytes), scratch)
                done = {_DIGEST: manifest.digest, _BYTES: str(manifest.total_bytes), _STATE: "committed"}
                if replaces is not None:
                    done[_REPLACES] = replaces.run_id
                self._runs.log(run_id, metrics=metrics, tags=done)
                other = self._decided(key, run_id, replaces)
                if other is None:
                    self._runs.end(run_id, "FINISHED")
            except BaseException as error:
                self.abandon(run_id, error)
                raise
            if other is None:
                # A writer that was held up for seconds may have finished too. Now both writers see both outputs, and
                # take the first.
                other = self.lookup(key)
            if other is None:
                raise StoreError(f"{self.display_uri}: run {run_id} is FINISHED but is not found; try again.")
            if other.run_id != run_id:
                self._runs.end(run_id, "KILLED")
                if other.digest != manifest.digest:
                    _log.warning("%s was computed twice with different results; the first is kept", other)
                return other
        if replaces is not None:
            # For people and for `cudd gc`; readers ignore the old output already. Its cached copy is fine, so it stays.
            with contextlib.suppress(CuddError):
                self._withdraw(replaces, "computed again on request")
        return Ref(stage, key, run_id, manifest.digest, manifest.total_bytes, reused=False)

    def runs(self, key: str) -> list[Run]:
        """Return all attempts at `key`: first those that have not ended, then the others in the order of their ends.

        Raises:
            ValueError: `key` is not a stage key.
        """
        if not _HEX.fullmatch(key):
            raise ValueError(f"{key!r} is not a stage key")
        # In one query for all statuses: with several, a run that changes its status in between might be in none.
        runs = self._runs.search(self.experiment, f"tags.`{_KEY}` = '{key}'")
        return sorted(runs, key=lambda run: (run.info.end_time or 0, run.info.run_id))

    def _attempts(self, runs: Iterable[Run]) -> list[Attempt]:
        """Return stage runs as attempts, each with its output unless it was withdrawn or replaced by another of `runs`.

        A replaced output stays replaced even if its replacement has been withdrawn since. No run is kept.
        """
        attempts, replaced = list[Attempt](), set[str | None]()
        for run in runs:
            was_output = run.info.status == "FINISHED" or _DAMAGED in run.data.tags
            attempts.append(_attempt(run, self._ref(run) if was_output else None))
            if was_output:
                replaced.add(run.data.tags.get(_REPLACES))
        return [dataclasses.replace(each, ref=None) if each.run_id in replaced else each for each in attempts]

    def _ref(self, run: Run) -> Ref | None:
        """Return the reference to a finished run; None if it was withdrawn or lacks our tags."""
        tags = run.data.tags
        digest, size = tags.get(_DIGEST, ""), tags.get(_BYTES, "")
        if _DAMAGED in tags or not _HEX.fullmatch(digest) or not size.isdecimal():
            return None
        self._artifacts.remember(run)
        return Ref(tags.get(_STAGE, ""), tags[_KEY], run.info.run_id, digest, int(size), reused=True)

    def _decided(self, key: str, run_id: str, replaces: Ref | None) -> Ref | None:
        """Return the output that the committed attempt `run_id` yields to; None if the attempt may finish.

        It does not yield to the output that it `replaces`, but does to another one that has replaced that first.

        Writers announce themselves (state "committed") before they look, so that of any two at least one sees the
        other. A writer that sees no rival finishes at once, and the others wait for it. If all have seen each other, or
        the one they wait for was killed, they finish in the order of their ids, with time in between.
        """
        started = time.monotonic()
        while True:
            standing = self.standing(key)
            if standing.ref is not None and (replaces is None or standing.ref.run_id != replaces.run_id):
                return standing.ref
            announced = {run.info.run_id for run in standing.running if run.data.tags.get(_STATE) == "committed"}
            rivals = announced - {run_id}
            turn = 1 + sum(rival < run_id for rival in rivals)
            if not rivals or time.monotonic() - started > SETTLE_SECONDS * turn:
                return None
            time.sleep(_SETTLE_POLL)

    def _retire(self, extra: Ref, kept: Ref) -> None:
        """Mark a second FINISHED run of a key KILLED: its writer died before it saw the first."""
        _log.warning("%s was finished twice; run %s is marked KILLED", kept, extra.run_id)
        # A reader without write access can still read the first.
        with contextlib.suppress(CuddError):
            self._runs.log(extra.run_id, tags={_STATE: "duplicate"})
            self._runs.mark_killed(extra.run_id)

    def _kill_stale(self, running: Iterable[Run]) -> None:
        """Mark this user's attempts KILLED that must be dead: made here, where we hold the key's lock, or a day old."""
        oldest = int((time.time() - _STALE_SECONDS) * 1000)
        for run in running:
            here = run.data.tags.get(PLACE_TAG) == self._place.name
            if run.data.tags.get(USER_TAG) == user_name() and (here or run.info.start_time < oldest):
                self._runs.end(run.info.run_id, "KILLED")

    # ---- what is stored -----------------------------------------------------------------------------------------

    def fetch(self, ref: Ref) -> Record:
        """Return the verified record of `ref`. Its tensors may be mapped from files: never change them in place.

        Raises:
            ArtifactDamaged: stored bytes are missing or altered; see `invalidate`.
            StoreError: the store cannot be reached.
        """
        folder = self.fetch_folder(ref)
        try:
            return read_record(folder, verified=True)
        except ArtifactDamaged:
            # Somebody may have removed this machine's copy since it was verified; the stored output may be intact.
            forget(folder)
            return read_record(self.fetch_folder(ref), verified=True)

    def fetch_folder(self, ref: Ref) -> Path:
        """Return a local folder with the verified files of `ref`, for reading only. Raises like `fetch`."""
        return self._artifacts.fetch_folder(ref)

    def lies_here(self, ref: Ref) -> bool:
        """Whether this machine has the files of `ref`, intact or not."""
        return self._artifacts.lies_here(ref)

    def reference(self, run_id: str) -> Ref:
        """Return the reference to the finished stage run with that MLflow run id. Raises `Gone` if there is none."""
        run = self._runs.get(run_id)
        ref = self._ref(run) if run.info.status == "FINISHED" and _KEY in run.data.tags else None
        if ref is None:
            raise Gone(f"MLflow store {self.display_uri}: run {run_id} is not a finished stage run.")
        return ref

    def ledger(self) -> Ledger:
        """Return all attempts at all stage keys, and which pipeline runs are RUNNING."""
        # Looking for reference cycles would take longer than MLflow does to read many runs.
        with uncollected():
            attempts = self._attempts(run for run in self._runs.each(self.experiment) if _KEY in run.data.tags)
        # Runs are read page by page. If an output is replaced meanwhile, the new one may be missing or seen as it was
        # before, and the old one be seen as it is after that. Attempts at one key are read in one request.
        doubtful = {
            each.key for each in attempts if each.status == "RUNNING" or (each.status == "KILLED" and each.reason)
        }
        doubtful &= {each.key for each in attempts if each.status != "RUNNING"}
        doubtful -= {each.key for each in attempts if each.ref is not None}
        if doubtful:
            attempts = [each for each in attempts if each.key not in doubtful]
            attempts += [each for key in sorted(doubtful) for each in self._attempts(self.runs(key))]
        # Read after the attempts, each of which began after its pipeline run did.
        return Ledger.of(attempts, {run.info.run_id for run in self.pipelines.going_on()})

    def invalidate(self, ref: Ref, reason: str) -> None:
        """Withdraw `ref`, so that `lookup` no longer returns it, and drop its cached copy. Its artifacts stay."""
        _log.warning("%s is withdrawn: %s", ref, redact(reason))
        self._withdraw(ref, reason)
        self._artifacts.drop(ref.digest)

    def _withdraw(self, ref: Ref, reason: str) -> None:
        with contextlib.suppress(Gone):
            self._runs.log(ref.run_id, tags={_DAMAGED: reason})
            self._runs.mark_killed(ref.run_id)

    def check_own_artifacts(self) -> None:
        """Raise ConfigError if this home is a copy and its artifacts are the original's, which removing would ruin."""
        folder = self.connect()._connection.artifacts_folder
        original = folder.parent.parent if folder is not None else None  # HOME/artifacts/EXPERIMENT
        if original is not None and self._place.copied_from(original / self.lock_folder.name):
            raise ConfigError(
                f"{self.lock_folder.parent} is a copy of {original} and uses the artifacts there: what is removed here "
                f"would be missing in the original. Call this with CUDD_HOME={original}."
            )

    def remove(self, attempt: Attempt) -> None:
        """Delete an attempt's artifacts, then its run. It is withdrawn first, so that `gc` finds it after a kill."""
        if attempt.ref is not None:
            self._withdraw(attempt.ref, "removed: no kept run refers to it")
            self._artifacts.drop(attempt.ref.digest)
        with contextlib.suppress(Gone):
            self._artifacts.delete(attempt.run_id, attempt.artifact_uri)
        with contextlib.suppress(Gone):
            self._runs.delete(attempt.run_id)


def _rebuild(tracking_uri: str, cache: Path, root: str | None, experiment: str, copy_artifacts: bool) -> Store:
    if os.environ.get("CUDD_HOME"):
        # This machine's home, which may be at another path than the sender's.
        cache = home_folder() / "cache"
    return Store(tracking_uri, cache, root, experiment, copy_artifacts=copy_artifacts)


def _attempt(run: Run, ref: Ref | None) -> Attempt:
    info, tags = run.info, run.data.tags
    return Attempt(
        run_id=info.run_id,
        key=tags[_KEY],
        stage=tags.get(_STAGE, ""),
        title=tags.get("cudd.title", ""),
        status=info.status,
        started=info.start_time / 1000,
        ended=info.end_time / 1000 if info.end_time else None,
        pipeline_run=tags.get("cudd.pipeline_run", ""),
        reason=tags.get(_REASON) or tags.get(_DAMAGED, ""),
        ref=ref,
        artifact_uri=info.artifact_uri,
        seconds=run.data.metrics.get(SECONDS),
    )
