"""What nobody needs in the store: attempts without a result, and outputs that no kept pipeline run refers to."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from tasks.caching import FORCED_FILE
from tasks.ledger import Attempt
from tasks.pipeline_runs import LINK_TAG, PARENT_TAG
from tasks.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

_SCRATCH_HOURS = 24
_SILENT_HOURS = 7 * 24
"""A RUNNING pipeline run without a sign of life for so long is dead: its machine died, or an older version made it."""


@dataclass(frozen=True)
class Garbage:
    """What can be removed.

    `abandoned`: attempts that failed or were stopped, killed, withdrawn or replaced, except the last one at a key that
    a kept run has yet to compute. `unreferenced`: finished outputs that no kept run needs.

    `local`: this machine's cached copies and decoded images, which can be made again, and leftover scratch folders.
    `checkpoints`: work folders of keys that are finished, or that no kept run began. `going_on`: ids of the active
    pipeline runs, because of which finished outputs and decoded images stay.
    """

    abandoned: tuple[Attempt, ...]
    unreferenced: tuple[Attempt, ...]
    local: tuple[Path, ...]
    checkpoints: tuple[Path, ...]
    going_on: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of unreferenced outputs, local folders and checkpoints, without uploads of abandoned attempts."""
        stored = sum(attempt.ref.bytes for attempt in self.unreferenced if attempt.ref is not None)
        return stored + sum(_size(folder) for folder in (*self.local, *self.checkpoints))


def find_garbage(store: Store, hours: float) -> Garbage:
    """Return what can be removed. All of it is at least `hours` old, except checkpoints of finished keys.

    Scratch folders must also be a day old, and stay while any pipeline run is active. So do finished outputs, since
    that run may be about to reuse them, and decoded images, which it may be reading. Whatever an undeleted pipeline run
    refers to or made itself is needed, however that run ended: it may be resumed.

    Raises:
        ConfigError: this home is a copy that uses the original's artifacts.
    """
    store.check_own_artifacts()
    before = _hours_ago(hours)
    pipelines = _kept(_all_runs(store))
    kept = {run.info.run_id for run in pipelines}
    needed = {value for run in pipelines for tag, value in run.data.tags.items() if tag.startswith(LINK_TAG)}
    abandoned, unreferenced = [], []
    ledger = store.ledger()
    going_on = _going_on(store, pipelines, ledger.attempts)
    begun = {folder.name: folder for folder in _folders(store.work_folder)}
    # The last attempt at a key shows that a kept run needs its checkpoint, even to another machine that may hold it.
    unfinished = {
        each.key: each.run_id
        for each in sorted(ledger.attempts, key=lambda attempt: attempt.started)
        if each.pipeline_run in kept and each.key not in ledger.stored
    }
    for attempt in ledger.attempts:
        if (attempt.ended or attempt.started) > before:
            continue
        if attempt.ref is None:
            # A RUNNING attempt may belong to an active run; if there is none, it is dead.
            if (attempt.status != "RUNNING" or not going_on) and unfinished.get(attempt.key) != attempt.run_id:
                abandoned.append(attempt)
        elif attempt.run_id not in needed and attempt.pipeline_run not in kept and not going_on:
            unreferenced.append(attempt)
    # A stored output may be in the course of being computed again because it was forced; that work is not finished.
    finished = {key for key, folder in begun.items() if key in ledger.stored and not (folder / FORCED_FILE).exists()}
    checkpoints = [
        folder
        for key, folder in begun.items()
        if key in finished or (key not in unfinished and not going_on and _older(folder, before))
    ]
    yesterday = min(before, _hours_ago(_SCRATCH_HOURS))
    local = [
        folder
        for folder in _folders(store.cache_folder)
        if (not going_on and _older(folder, yesterday) if folder.name.startswith(".") else _older(folder, before))
    ]
    if not going_on:  # a run marks the folder that it reads only when it opens it, which may be days ago
        local += [folder for folder in _folders(store.decoded_folder) if _older(folder, before)]
    return Garbage(tuple(abandoned), tuple(unreferenced), tuple(local), tuple(checkpoints), going_on)


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove all of it. If this is killed half-way, the rest is found again.

    Raises:
        StoreError: the store refused; what was removed before that is gone.
    """
    for attempt in (*garbage.abandoned, *garbage.unreferenced):
        store.remove(attempt)
    for folder in garbage.local:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in garbage.checkpoints:
        # If this key is being computed here, because it was forced or while another machine finished it, it is locked.
        with contextlib.suppress(Timeout), FileLock(store.lock_folder / f"{folder.name}.lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


def _all_runs(store: Store) -> list[Run]:
    """Return all pipeline runs, read until two answers agree: MLflow's paging skips a run if another is deleted."""
    found = store.pipelines.search()
    while True:
        again = store.pipelines.search()
        if {run.info.run_id for run in found} == {run.info.run_id for run in again}:
            return again
        found = again


def _kept(runs: Iterable[Run]) -> list[Run]:
    """Return the runs that are not nested, at any depth, in a deleted run."""
    there = {run.info.run_id: run for run in runs}

    def stands(run: Run | None) -> bool:
        parent = run.data.tags.get(PARENT_TAG) if run is not None else None
        return run is not None and (parent is None or stands(there.get(parent)))

    return [run for run in there.values() if stands(run)]


def _going_on(store: Store, runs: Sequence[Run], attempts: Iterable[Attempt]) -> tuple[str, ...]:
    """Return the ids of RUNNING runs that are alive here, or that began or did something within `_SILENT_HOURS`."""
    seen = {run.info.run_id: run.info.start_time / 1000 for run in runs if run.info.status == "RUNNING"}
    for attempt in attempts:
        if attempt.pipeline_run in seen:
            seen[attempt.pipeline_run] = max(seen[attempt.pipeline_run], attempt.ended or attempt.started)
    here = {run.info.run_id for run in runs if store.pipelines.holds_lock_here(run)}
    return tuple(run for run, when in seen.items() if run in here or when > _hours_ago(_SILENT_HOURS))


def _hours_ago(hours: float) -> float:
    return time.time() - 3600 * hours


def _older(folder: Path, before: float) -> bool:
    try:
        return folder.stat().st_mtime < before
    except FileNotFoundError:
        return False  # a scratch folder that was removed just now


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _size(folder: Path) -> int:
    """Return the bytes on disk; of a sparse file, only those that were written."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
