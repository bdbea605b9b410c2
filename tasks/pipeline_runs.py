"""Pipeline runs and their nested runs in MLflow: the ones people open, which link to the stage outputs they used."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tasks.artifacts import Artifacts
from tasks.log_requests import TAG_BATCH
from tasks.mlflow_connection import Connection
from tasks.mlflow_runs import MetricRow, MlflowRuns, Status
from tasks.place import PLACE_TAG, Place
from tasks.refs import Ref

if TYPE_CHECKING:
    from mlflow.entities import Run

RUNS_EXPERIMENT = "cudd-runs"
LINK_TAG = "cudd.stage."
"""A pipeline run's tag `cudd.stage.NAME.KEY` is the id of a stage run that it used."""

ROUND_TAG = "cudd.round"
"""A nested run's tag with the name of its round, such as `curriculum 2`."""

PARENT_TAG, _LOCK = "mlflow.parentRunId", "cudd.lock"
_LOCK_PREFIX = "run-"
_LOCK_ID = re.compile(r"[0-9a-f]{64}")
_DATASET_DIGEST_CHARACTERS = 36


@dataclass(frozen=True)
class Link:
    """That a pipeline run used a stage's output, in the round of this name, '' if in none.

    `output`: STAGE.KEY, as `linked_name` gives it. A link stays when the output is deleted.
    """

    round: str
    output: str


class PipelineRuns:
    """The pipeline runs of one store. Cheap to create; raises StoreError if the store refuses.

    From `start` to `finish`, this process holds a lock of `place` for the run. If the process is killed, the system
    releases the lock.
    """

    def __init__(self, connection: Connection, artifacts: Artifacts, place: Place) -> None:
        self._connection = connection
        self._artifacts = artifacts
        self._runs = MlflowRuns(connection)
        self._place = place
        self._held: dict[str, FileLock] = {}

    def start(self, name: str, tags: Mapping[str, str], params: Mapping[str, object], parent: str | None = None) -> str:
        """Start a run (nested under `parent`) and return its id."""
        self._connection.open()
        # The lock has a name of its own and is held before the run exists, so the run can never be taken for dead.
        lock_id = secrets.token_hex(32)
        lock = self._lock(lock_id)
        start = {**self._place.tags, _LOCK: lock_id, **tags, **({PARENT_TAG: parent} if parent else {})}
        lock.acquire()
        try:
            run_id: str = self._runs.start(RUNS_EXPERIMENT, name, start).info.run_id
            self._runs.log(run_id, params=params)
        except BaseException:
            _let_go(lock)
            raise
        self._held[run_id] = lock
        return run_id

    def finish(self, run_id: str, status: Status = "FINISHED") -> None:
        """End a run and release its lock, even if the store refuses: `end_dead` then finds the run."""
        try:
            self._runs.end(run_id, status)
        finally:
            if (lock := self._held.pop(run_id, None)) is not None:
                _let_go(lock)

    def end_dead(self) -> None:
        """Mark runs, nested ones too, KILLED if their process on this machine no longer exists."""
        self._connection.open()
        for run in self.search(f"attributes.status = 'RUNNING' and tags.`{PLACE_TAG}` = '{self._place.name}'"):
            lock_id = run.data.tags.get(_LOCK, "")
            if _LOCK_ID.fullmatch(lock_id):
                self._end_if_dead(run.info.run_id, self._lock(lock_id))

    def holds_lock_here(self, run: Run) -> bool:
        """Whether a run was begun in this home with a lock. If it is RUNNING after `end_dead`, its process is alive."""
        tags = run.data.tags
        return tags.get(PLACE_TAG) == self._place.name and _LOCK in tags

    def any_alive_here(self) -> bool:
        """Whether a process of this home is between `start` and `finish`; the store is not asked."""
        return self._place.any_held(f"{_LOCK_PREFIX}*")

    def search(self, text: str = "") -> list[Run]:
        """Return the runs that match MLflow's filter `text`, latest first, without deleted ones."""
        return self._runs.search(RUNS_EXPERIMENT, text)

    def beginning_with(self, text: str) -> list[str]:
        """Return the run ids that begin with the hexadecimal digits `text`, without those of deleted runs."""
        return [run.info.run_id for run in self.search(f"attributes.run_id LIKE '{text}%'")]

    def outermost(self) -> list[Run]:
        """Return the runs that are not nested in another, latest first."""
        return [run for run in self.search() if PARENT_TAG not in run.data.tags]

    def name_of(self, run_id: str) -> str:
        """Return a run's name; raises `Gone` if there is no such run."""
        return str(self._runs.get(run_id).info.run_name)

    def status_of(self, run_id: str) -> str:
        """Return a run's status; raises `Gone` if there is no such run."""
        return str(self._runs.get(run_id).info.status)

    def links(self, run_id: str) -> dict[str, Link]:
        """Return the ids of the stage runs that a run used, also of those that are deleted now."""
        found: dict[str, Link] = {}
        for run in (*self.search(f"tags.`{PARENT_TAG}` = '{run_id}'"), self._runs.get(run_id)):
            name = run.data.tags.get(ROUND_TAG, "")
            links = {
                tag.removeprefix(LINK_TAG): used for tag, used in run.data.tags.items() if tag.startswith(LINK_TAG)
            }
            found |= {used: Link(name, output) for output, used in links.items()}
        return found

    def going_on(self) -> list[Run]:
        """Return the runs that are RUNNING."""
        return self.search("attributes.status = 'RUNNING'")

    def log_metrics(self, run_id: str, rows: Iterable[MetricRow]) -> None:
        """Append metric rows to a run. A step that is logged twice shows up twice."""
        self._runs.log(run_id, metrics=rows)

    def log_files(self, run_id: str, folder: Path) -> None:
        """Upload the files of `folder` to a run."""
        self._runs.log_files(run_id, folder)

    def read_text(self, run_id: str, path: str) -> str:
        """Return a small text artifact of a run; raises `Gone` if there is no such run, or no such file in it."""
        with self._artifacts.scratch() as scratch:
            return self._runs.read_text(run_id, path, scratch)

    def experiment_of(self, run_id: str) -> str:
        """Return the id of the experiment that a run belongs to."""
        return str(self._runs.get(run_id).info.experiment_id)

    def link(self, run_id: str, *refs: Ref) -> None:
        """Record that a run used stage outputs: as its inputs (`dataset.digest` is the digest's first 36 characters)
        and as tags (`LINK_TAG`).
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        client = self._connection.client
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
            self._connection.call(f"linking run {run_id}", functools.partial(client.log_inputs, run_id, inputs))
            self._runs.log(run_id, tags={LINK_TAG + linked_name(ref): ref.run_id for ref in part})

    def _end_if_dead(self, run_id: str, lock: FileLock) -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return
        try:
            # It may have ended and released its lock since it was found RUNNING.
            if self._runs.get(run_id).info.status == "RUNNING":
                self._runs.end(run_id, "KILLED")
        finally:
            _let_go(lock)

    def _lock(self, lock_id: str) -> FileLock:
        return self._place.lock(f"{_LOCK_PREFIX}{lock_id}")


def linked_name(ref: Ref) -> str:
    """Return what names an output in links: its stage, and its key's first 16 characters."""
    return f"{ref.stage}.{ref.key[:16]}"


def _let_go(lock: FileLock) -> None:
    """Remove a run's lock file, then release the lock: after the release, the file could be somebody else's lock."""
    with contextlib.suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()
