"""MLflow as the only store: one run per attempt at a stage key, and one per pipeline run.

A stage's output exists for readers from the moment its run's status becomes FINISHED, which is set last. Runs are
addressed by id, never through MLflow's active run, which other threads do not see.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from cudd_core.codec import read_record, write_record
from cudd_core.errors import Cancelled, CuddError, StoreError
from cudd_core.records import Record
from tasks.addresses import home_folder, is_server, tracking_uri
from tasks.artifacts import Artifacts
from tasks.folders import writing
from tasks.ledger import SECONDS, Attempt, Ledger
from tasks.log_requests import TAG_BATCH, log_requests, tag_texts
from tasks.mlflow_calls import Gone
from tasks.mlflow_connection import Connection
from tasks.passwords import redact
from tasks.refs import Ref

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

STAGES_EXPERIMENT = "cudd-stages"
RUNS_EXPERIMENT = "cudd-runs"
SETTLE_SECONDS = 5.0
"""How long two writers of one key that meet wait for each other; above what setting a status takes."""

MetricRow = tuple[str, float, int]
"""(name, value, step)."""
Status = Literal["FINISHED", "FAILED", "KILLED"]

_KEY, _STAGE, _STATE, _DIGEST, _BYTES = "cudd.key", "cudd.stage", "cudd.state", "cudd.digest", "cudd.bytes"
_DAMAGED, _USER, _PARENT = "cudd.damaged", "mlflow.user", "mlflow.parentRunId"
_PLACE, _LOCK, _REASON = "cudd.place", "cudd.lock", "cudd.reason"
_HEX = re.compile(r"[0-9a-f]{64}")
_STALE_SECONDS = 24 * 3600
_SETTLE_POLL = 0.2
_DATASET_DIGEST_CHARACTERS = 36
_PAGE = 1000

_log = logging.getLogger("cudd.store")


@dataclass(frozen=True)
class Standing:
    """What a store holds of one key: its output, if there is one, and the attempts that are RUNNING."""

    ref: Ref | None
    running: tuple[Run, ...]


class Store:
    """A tracking server or database, with a local cache. Cheap to make, picklable; connects on first use.

    `tracking_uri`: MLflow's. `cache_folder`: downloads and scratch space; its parent also holds `work` and `locks`.
    `artifact_root`: where new experiments keep artifacts, a URI or a folder; None leaves it to the tracking server.
    `copy_artifacts`: True copies artifacts to the cache even from a local folder, for one on a slow network share.
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
        self._call = self._connection.call
        self._artifacts = Artifacts(self._connection, self.cache_folder, self.lock_folder, copy=copy_artifacts)
        self._held: dict[str, FileLock] = {}

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[object, ...]]:
        return _rebuild, (
            *(self.tracking_uri, self.cache_folder, self.artifact_root, self.experiment),
            self.copy_artifacts,
        )

    @classmethod
    def from_environment(cls, home: Path | None = None) -> Store:
        """The store that MLFLOW_TRACKING_URI, CUDD_ARTIFACT_ROOT and CUDD_HOME name.

        Without a tracking URI: SQLite and a folder under `home` (default: $CUDD_HOME, else ~/.cudd). Without an
        artifact root: a folder under `home` too, except with a tracking server, which then decides.
        """
        home = (home or home_folder()).expanduser().absolute()
        uri = tracking_uri(home)
        root = os.environ.get("CUDD_ARTIFACT_ROOT")
        if not root and not is_server(uri) and not uri.startswith("databricks"):
            # Without a server MLflow's own default would be ./mlruns, whatever the current folder is.
            root = str(home / "artifacts")
        return cls(uri, home / "cache", root or None)

    @property
    def output_folder(self) -> Path:
        """Where outputs take room on this machine: the folder of the artifacts if they lie here, else the cache."""
        self.connect()
        return self._connection.artifacts_folder or self.cache_folder

    @property
    def display_uri(self) -> str:
        """The tracking URI without a password, for messages and links."""
        return self._call.display_uri

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
        """Reach the store, make its database and experiments if they are missing; return self.

        Called by every other method; call it at the start of a run to learn at once what is wrong.

        Raises:
            StoreError: the tracking server or database cannot be reached or refuses.
            ResourceError: a local folder cannot be written.
        """
        self._connection.open()
        return self

    # ---- attempts at a key, and their commit --------------------------------------------------------------------

    def lookup(self, key: str) -> Ref | None:
        """Return the output stored under `key`, or None. Of several the earliest finished, the same for everyone."""
        return self.standing(key).ref

    def standing(self, key: str) -> Standing:
        """Return the output as `lookup` does, and who is at work on it, in one request."""
        runs = self.runs(key)
        found = [ref for run in runs if run.info.status == "FINISHED" and (ref := self._ref(run)) is not None]
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
        """Start an attempt at `key`: a RUNNING run, which does not exist for readers of outputs. Return its id.

        The caller holds this machine's lock of the key, so earlier attempts from here that still are RUNNING were
        killed; they are marked so. `standing`: as it was found under that lock; None asks for it.
        """
        if not _HEX.fullmatch(key):
            raise ValueError(f"{key!r} is not a stage key")
        client = self._client
        self._kill_stale((standing or self.standing(key)).running)
        number = self._connection.experiments[self.experiment]
        start = {
            **{_KEY: key, _STAGE: stage, _STATE: "running", _USER: user_name(), _PLACE: self._place},
            **tag_texts(tags or {}),
        }
        run = self._call(
            f"starting a run of stage {stage}",
            lambda: client.create_run(number, tags=start, run_name=f"{stage} {key[:8]}"),
        )
        run_id: str = run.info.run_id
        self._artifacts.remember(run)
        self._log(run_id, params=params or {})
        return run_id

    def abandon(self, attempt: str, error: BaseException) -> None:
        """End an attempt that failed (FAILED, with the reason) or was stopped (KILLED)."""
        stopped = isinstance(error, Cancelled) or not isinstance(error, Exception)
        reason = f"{type(error).__name__}: {error}"
        # The error that is on its way matters more than one of marking the run.
        with contextlib.suppress(CuddError):
            self._log(attempt, tags={_REASON: reason})
            self._terminate(attempt, "KILLED" if stopped else "FAILED")

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

        Return its reference. When another writer of the same key finished first, theirs is returned (`reused` is
        True) and this attempt is marked KILLED. `replaces`: the key's output so far, withdrawn once this one is stored.

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
                self._log(run_id, metrics=metrics, tags=done)
                other = self._decided(key, run_id, replaces)
                if other is None:
                    if replaces is not None:
                        # Not after FINISHED: of two outputs readers take the first. Its cached copy is not damaged.
                        self._withdraw(replaces, "computed again on request")
                    self._terminate(run_id, "FINISHED")
            except BaseException as error:
                self.abandon(run_id, error)
                raise
            if other is None:
                # A writer that was held up for seconds may have finished too. Both now see both, and take the first.
                other = self.lookup(key)
            if other is None:
                raise StoreError(f"{self.display_uri}: run {run_id} is FINISHED but is not found; try again.")
            if other.run_id != run_id:
                self._terminate(run_id, "KILLED")
                if other.digest != manifest.digest:
                    _log.warning("%s was computed twice with different results; the first is kept", other)
                return _reused(other)
        return Ref(stage, key, run_id, manifest.digest, manifest.total_bytes, reused=False)

    def runs(self, key: str) -> list[Run]:
        """Return all attempts at `key`, those without an end first, the others as they ended.

        Raises:
            ValueError: it is not a stage key.
        """
        if not _HEX.fullmatch(key):
            raise ValueError(f"{key!r} is not a stage key")
        client = self._client
        experiments = [self._connection.experiments[self.experiment]]
        # All at once: a run that changes its status in between is seen in one of them, not in none.
        runs: Sequence[Run] = self._call(
            "looking up a stage", lambda: client.search_runs(experiments, f"tags.`{_KEY}` = '{key}'")
        )
        return sorted(runs, key=lambda run: (run.info.end_time or 0, run.info.run_id))

    def _ref(self, run: Run) -> Ref | None:
        """The reference to a finished run; None for one that was withdrawn or lacks our tags."""
        tags = run.data.tags
        digest, size = tags.get(_DIGEST, ""), tags.get(_BYTES, "")
        if _DAMAGED in tags or not _HEX.fullmatch(digest) or not size.isdecimal():
            return None
        self._artifacts.remember(run)
        return Ref(tags.get(_STAGE, ""), tags[_KEY], run.info.run_id, digest, int(size), reused=True)

    def _decided(self, key: str, run_id: str, replaces: Ref | None) -> Ref | None:
        """Return the output that the committed attempt `run_id` yields to, or None: it may finish.

        It does not yield to what it `replaces`, but to whoever replaced that first.

        Writers announce themselves (state "committed") before they look, so that of any two one at least sees the
        other. Whoever sees nobody finishes at once; the rest wait for that. When all have seen each other, or the
        one that they wait for was killed, they go in the order of their ids, with time in between.
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
        client = self._client
        # A reader without the right to write still reads the first.
        with contextlib.suppress(CuddError):
            self._log(extra.run_id, tags={_STATE: "duplicate"})
            self._call(f"ending run {extra.run_id}", lambda: client.update_run(extra.run_id, status="KILLED"))

    def _kill_stale(self, running: Iterable[Run]) -> None:
        """Mark this user's attempts at a key that cannot be alive: made here, whose lock we hold, or a day old."""
        oldest = int((time.time() - _STALE_SECONDS) * 1000)
        for run in running:
            here = run.data.tags.get(_PLACE) == self._place
            if run.data.tags.get(_USER) == user_name() and (here or run.info.start_time < oldest):
                self._terminate(run.info.run_id, "KILLED")

    # ---- what is stored -----------------------------------------------------------------------------------------

    def fetch(self, ref: Ref) -> Record:
        """Return the verified record of `ref`. Its tensors may be mapped from files: never change them in place.

        Raises:
            ArtifactDamaged: stored bytes are missing or altered; see `invalidate`.
            StoreError: the store cannot be reached.
        """
        return read_record(self.fetch_folder(ref), verified=True)

    def fetch_folder(self, ref: Ref) -> Path:
        """Return a local folder with the verified files of `ref`, for reading only. Raises as `fetch`."""
        return self._artifacts.fetch_folder(ref)

    def lies_here(self, ref: Ref) -> bool:
        """Whether this machine has the files of `ref`, whatever their state."""
        return self._artifacts.lies_here(ref)

    def reference(self, run_id: str) -> Ref:
        """Return the reference to the finished stage run of that MLflow run id. Raises StoreError if there is none."""
        client = self._client
        run = self._call(f"opening run {run_id}", lambda: client.get_run(run_id))
        ref = self._ref(run) if run.info.status == "FINISHED" and _KEY in run.data.tags else None
        if ref is None:
            raise StoreError(f"MLflow store {self.display_uri}: run {run_id} is not a finished stage run.")
        return ref

    def ledger(self) -> Ledger:
        """Return all attempts at all stage keys, and which pipeline runs are going on."""
        attempts = [self._attempt(run) for run in self.search(self.experiment) if _KEY in run.data.tags]
        # Read after the attempts, each of which began after its pipeline run did.
        going_on = self.search(RUNS_EXPERIMENT, "attributes.status = 'RUNNING'")
        return Ledger.of(attempts, {run.info.run_id for run in going_on})

    def search(self, experiment: str, text: str = "") -> list[Run]:
        """Return the runs of an experiment that MLflow's filter `text` lets through, deleted ones excepted."""
        client, found, token = self._client, list[Any](), None
        where = [self._connection.experiments[experiment]]
        while True:
            search = functools.partial(client.search_runs, where, text, max_results=_PAGE, page_token=token)
            page: Any = self._call(f"reading the runs of {experiment}", search)
            found += page
            token = page.token
            if not token:
                return found

    def _attempt(self, run: Run) -> Attempt:
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
            ref=self._ref(run) if info.status == "FINISHED" else None,
            artifact_uri=info.artifact_uri,
            seconds=run.data.metrics.get(SECONDS),
        )

    def read_text(self, run_id: str, path: str) -> str:
        """Return a small text artifact of any run.

        Raises:
            Gone: no such run, or no such file in it.
            StoreError: the store cannot be reached.
        """
        client = self._client
        doing = f"downloading {path} of run {run_id}"
        folder = path.rpartition("/")[0] or None
        there = self._call(doing, lambda: client.list_artifacts(run_id, folder), bulk=True)
        if path not in {each.path for each in there}:
            raise Gone(f"MLflow store {self.display_uri}, {doing}: the run has no such file")
        with self._artifacts.scratch() as scratch:
            local = self._call(doing, lambda: client.download_artifacts(run_id, path, str(scratch)), bulk=True)
            return Path(local).read_text(encoding="utf-8")

    def experiment_of(self, run_id: str) -> str:
        """Return the id of the experiment that a run belongs to."""
        client = self._client
        run = self._call(f"opening run {run_id}", lambda: client.get_run(run_id))
        return str(run.info.experiment_id)

    def invalidate(self, ref: Ref, reason: str) -> None:
        """Withdraw `ref`: `lookup` no longer returns it, its cached copy is dropped. Its artifacts are left alone."""
        self._withdraw(ref, reason)
        self._artifacts.drop(ref.digest)

    def _withdraw(self, ref: Ref, reason: str) -> None:
        client = self._client
        _log.warning("%s is withdrawn: %s", ref, redact(reason))
        with contextlib.suppress(Gone):
            self._log(ref.run_id, tags={_DAMAGED: reason})
            self._call(f"withdrawing run {ref.run_id}", lambda: client.update_run(ref.run_id, status="KILLED"))

    def remove(self, attempt: Attempt) -> None:
        """Delete an attempt's artifacts, then its run. Withdrawn first: a kill in between leaves what `gc` finds."""
        client = self._client
        if attempt.ref is not None:
            self.invalidate(attempt.ref, "removed: no kept run refers to it")
        with contextlib.suppress(Gone):
            self._artifacts.delete(attempt.run_id, attempt.artifact_uri)
        with contextlib.suppress(Gone):
            self._call(f"removing run {attempt.run_id}", lambda: client.delete_run(attempt.run_id))

    # ---- pipeline runs ------------------------------------------------------------------------------------------

    def start_run(
        self,
        experiment: str,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, object],
        parent: str | None = None,
    ) -> str:
        """Start a run (nested under `parent`) and return its id. An experiment that does not exist is made.

        Until `finish_run` this process holds the run's lock, which the system releases should it be killed.
        """
        client = self._client
        number = self._connection.open_experiment(experiment)
        # Held before the run exists, under a name of its own: at no time can it be taken for a dead one.
        lock_id = secrets.token_hex(32)
        lock = self._run_lock(lock_id)
        start = {_USER: user_name(), _PLACE: self._place, _LOCK: lock_id, **tag_texts(tags)}
        start |= {_PARENT: parent} if parent else {}
        lock.acquire()
        try:
            run = self._call(
                f"starting run {name}",
                lambda: client.create_run(number, tags=start, run_name=name),
            )
            run_id: str = run.info.run_id
            self._log(run_id, params=params)
        except BaseException:
            _let_go(lock)
            raise
        self._held[run_id] = lock
        return run_id

    def end_dead_runs(self) -> None:
        """Mark pipeline runs, and their nested ones, KILLED where their process on this machine is no more."""
        self.connect()
        here = f"attributes.status = 'RUNNING' and tags.`{_PLACE}` = '{self._place}'"
        for run in self.search(RUNS_EXPERIMENT, here):
            lock_id = run.data.tags.get(_LOCK, "")
            if _HEX.fullmatch(lock_id):
                self._end_if_dead(run.info.run_id, self._run_lock(lock_id))

    def _end_if_dead(self, run_id: str, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        client = self._client
        try:
            # It may have ended, and let its lock go, since it was found RUNNING.
            found = self._call(f"opening run {run_id}", lambda: client.get_run(run_id))
            if found.info.status == "RUNNING":
                self._terminate(run_id, "KILLED")
        finally:
            _let_go(lock)

    def _run_lock(self, lock_id: str) -> FileLock:
        # A run may end in another thread than it began in.
        return FileLock(self.lock_folder / f"run-{lock_id}.lock", thread_local=False)

    def log_metrics(self, run_id: str, rows: Iterable[MetricRow]) -> None:
        """Append metric rows to a run, 1,000 per request. The same step logged twice shows twice."""
        self._log(run_id, metrics=rows)

    def log_files(self, run_id: str, folder: Path, artifact_path: str | None = None) -> None:
        """Upload the files of `folder` to a run, under `artifact_path`."""
        client = self._client
        send = functools.partial(client.log_artifacts, run_id, str(folder), artifact_path)
        self._call(f"uploading to run {run_id}", send, bulk=True)

    def link_stage(self, run_id: str, *refs: Ref) -> None:
        """Record that a run used stage outputs: as its inputs (`dataset.digest` is the digest's first 36 characters)
        and as a tag `cudd.stage.NAME.KEY` = stage run id.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        client = self._client
        for start in range(0, len(refs), TAG_BATCH):
            part = refs[start : start + TAG_BATCH]
            inputs = [
                DatasetInput(
                    Dataset(
                        name=ref.stage,
                        digest=ref.digest[:_DATASET_DIGEST_CHARACTERS],
                        source_type="cudd-stage",
                        source=json.dumps({"run_id": ref.run_id, "key": ref.key}),
                    ),
                    [InputTag("cudd.reused", str(ref.reused).lower())],
                )
                for ref in part
            ]
            self._call(f"linking run {run_id}", functools.partial(client.log_inputs, run_id, inputs))
            self._log(run_id, tags={f"cudd.stage.{ref.stage}.{ref.key[:16]}": ref.run_id for ref in part})

    def finish_run(self, run_id: str, status: Status = "FINISHED") -> None:
        """End a run and let its lock go, even if the store refuses: `end_dead_runs` then finds it."""
        try:
            self._terminate(run_id, status)
        finally:
            if (lock := self._held.pop(run_id, None)) is not None:
                _let_go(lock)

    # ---- any run ------------------------------------------------------------------------------------------------

    @property
    def _client(self) -> MlflowClient:
        return self._connection.client

    def _log(
        self,
        run_id: str,
        *,
        params: Mapping[str, object] | None = None,
        metrics: Iterable[MetricRow] = (),
        tags: Mapping[str, str] | None = None,
    ) -> None:
        client = self._client
        for request in log_requests(params or {}, metrics, tags or {}):
            self._call(f"logging to run {run_id}", functools.partial(client.log_batch, run_id, **request))

    def _terminate(self, run_id: str, status: Status) -> None:
        client = self._client
        self._call(f"ending run {run_id}", lambda: client.set_terminated(run_id, status))

    @functools.cached_property
    def _place(self) -> str:
        """Names the lock folder, so that whoever has the same name for it meets at the same locks.

        Host names change with every container and may occur twice; the id that lies in the folder does neither. A copy
        of the folder lies at another path.
        """
        file = self.lock_folder / "place"
        with writing(self.lock_folder):
            if not file.exists():
                with FileLock(f"{file}.lock"):
                    if not file.exists():
                        new = file.with_suffix(".new")
                        new.write_text(secrets.token_hex(32))
                        new.replace(file)
            place = f"{file.read_text()} {self.lock_folder.resolve()}"
        return hashlib.sha256(place.encode()).hexdigest()[:16]


def _rebuild(tracking_uri: str, cache: Path, root: str | None, experiment: str, copy_artifacts: bool) -> Store:
    return Store(tracking_uri, cache, root, experiment, copy_artifacts=copy_artifacts)


def _let_go(lock: FileLock) -> None:
    """Remove a run's lock file, then release the lock: afterwards the file might be another's, who holds it."""
    with contextlib.suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()


def _reused(ref: Ref) -> Ref:
    return Ref(ref.stage, ref.key, ref.run_id, ref.digest, ref.bytes, reused=True)


def user_name() -> str:
    """Return whose attempts this process makes: the login name, in characters that MLflow's filters take."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = "unknown"
    return re.sub(r"[^\w.@-]", "_", name)
