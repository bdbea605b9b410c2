"""What of the store nobody needs: attempts that came to nothing, and outputs that no kept pipeline run refers to."""

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
"""A RUNNING pipeline run without a sign of life for so long is gone: its machine died, or an older version made it."""


@dataclass(frozen=True)
class Garbage:
    """`abandoned`: attempts that failed, were stopped, killed, withdrawn or replaced, but the last at a key that a kept
    run has yet to make. `unreferenced`: finished outputs.

    `local`: this machine's cached copies and decoded images, which can be had again, and scratch folders that somebody
    left. `checkpoints`: folders of work that has been finished, or that no kept run began. `going_on`: ids of the runs
    for whose sake finished outputs stay.
    """

    abandoned: tuple[Attempt, ...]
    unreferenced: tuple[Attempt, ...]
    local: tuple[Path, ...]
    checkpoints: tuple[Path, ...]
    going_on: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of unreferenced outputs and local folders; what abandoned attempts have uploaded is not counted."""
        stored = sum(attempt.ref.bytes for attempt in self.unreferenced if attempt.ref is not None)
        return stored + sum(_size(folder) for folder in (*self.local, *self.checkpoints))


def find_garbage(store: Store, hours: float) -> Garbage:
    """Return what can go, all of it at least `hours` old; scratch folders also a day, and only if no run is going on.

    Needed is what a pipeline run that was not deleted refers to, or made itself, whatever became of that run: it may be
    resumed. While any pipeline run is going on, finished outputs stay, since it may be about to reuse them.
    """
    before = _hours_ago(hours)
    pipelines = _kept(_all_runs(store))
    kept = {run.info.run_id for run in pipelines}
    needed = {value for run in pipelines for tag, value in run.data.tags.items() if tag.startswith(LINK_TAG)}
    abandoned, unreferenced = [], []
    ledger = store.ledger()
    going_on = _going_on(store, pipelines, ledger.attempts)
    begun = {folder.name: folder for folder in _folders(store.work_folder)}
    # The last attempt at a key says whose a checkpoint is, also to the machine that has it, which need not be this one.
    unfinished = {
        each.key: each.run_id
        for each in sorted(ledger.attempts, key=lambda attempt: attempt.started)
        if each.pipeline_run in kept and each.key not in ledger.stored
    }
    for attempt in ledger.attempts:
        if (attempt.ended or attempt.started) > before:
            continue
        if attempt.ref is None:
            # One that is RUNNING belongs to a run that goes on, unless that is gone.
            if (attempt.status != "RUNNING" or not going_on) and unfinished.get(attempt.key) != attempt.run_id:
                abandoned.append(attempt)
        elif attempt.run_id not in needed and attempt.pipeline_run not in kept and not going_on:
            unreferenced.append(attempt)
    # What is stored may be made again, since it was forced: that work is not finished.
    finished = {key for key, folder in begun.items() if key in ledger.stored and not (folder / FORCED_FILE).exists()}
    checkpoints = [
        folder
        for key, folder in begun.items()
        if key in finished or (key not in unfinished and not going_on and _older(folder, before))
    ]
    yesterday = min(before, _hours_ago(_SCRATCH_HOURS))
    local = [
        folder
        for folder in (*_folders(store.cache_folder), *_folders(store.decoded_folder))
        if (not going_on and _older(folder, yesterday) if folder.name.startswith(".") else _older(folder, before))
    ]
    return Garbage(tuple(abandoned), tuple(unreferenced), tuple(local), tuple(checkpoints), going_on)


def remove_garbage(store: Store, garbage: Garbage) -> None:
    """Remove all of it. Killed half-way, it is found again.

    Raises:
        StoreError: the store refused; what was removed until then is gone.
    """
    for attempt in (*garbage.abandoned, *garbage.unreferenced):
        store.remove(attempt)
    for folder in garbage.local:
        shutil.rmtree(folder, ignore_errors=True)
    for folder in garbage.checkpoints:
        # Whoever computes that key, because it was forced or on another machine too, holds its lock.
        with contextlib.suppress(Timeout), FileLock(store.lock_folder / f"{folder.name}.lock", timeout=0):
            shutil.rmtree(folder, ignore_errors=True)


def _all_runs(store: Store) -> list[Run]:
    """Return all pipeline runs. A page of MLflow's answer passes one over where another is deleted meanwhile."""
    found = store.pipelines.search()
    while True:
        again = store.pipelines.search()
        if {run.info.run_id for run in found} == {run.info.run_id for run in again}:
            return again
        found = again


def _kept(runs: Iterable[Run]) -> list[Run]:
    """Those that are not nested in a run that was deleted."""
    there = {run.info.run_id: run for run in runs}

    def stands(run: Run | None) -> bool:
        parent = run.data.tags.get(PARENT_TAG) if run is not None else None
        return run is not None and (parent is None or stands(there.get(parent)))

    return [run for run in there.values() if stands(run)]


def _going_on(store: Store, runs: Sequence[Run], attempts: Iterable[Attempt]) -> tuple[str, ...]:
    """Return the ids of RUNNING runs that are alive here, or began or did something within the last days."""
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
        return False  # a scratch folder that was in use until now


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _size(folder: Path) -> int:
    """Bytes on the disk: of a sparse file, those that were written."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
