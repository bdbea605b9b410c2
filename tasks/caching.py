"""What every task does: look up the stage's key, and compute and commit if nothing usable is stored."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cudd_core.errors import ArtifactDamaged, ResourceError
from cudd_core.records import Record
from tasks.keys import stage_key
from tasks.mlflow_runs import MetricRow
from tasks.refs import Ref
from tasks.store import Standing, Store

EXTRA_FOLDER = "extra"
"""Subfolder of the work folder whose files (previews, a report) are stored beside the record."""
FORCED_FILE = ".forced"
"""Marks a work folder whose checkpoints all come from forced attempts that did not finish."""

_POLL_SECONDS = 2.0
_log = logging.getLogger("cudd.caching")


def cached_stage(
    store: Store,
    *,
    stage: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    compute: Callable[[Path], Record],
    force: bool = False,
    params: Mapping[str, object] | None = None,
    metrics_of: Callable[[Record], Iterable[MetricRow]] | None = None,
    tags: Mapping[str, str] | None = None,
    check: Callable[[], None] | None = None,
) -> Ref:
    """Return the stage's stored output, computing it if there is none (`reused` says which).

    `config`, `inputs` (name → digest): see `stage_key`. `compute(work)` returns the record; `work` is this key's folder
    for checkpoints, which survives a kill and is removed once the record is stored. Files written to `work/extra` are
    stored too. `force`: compute even if an output is stored, from the start or from where a forced attempt was
    stopped, and then replace the stored one. `metrics_of` returns the stage run's metrics. `check` is called while
    another process computes the same key; it may raise Cancelled.

    A stored output that is missing or damaged is withdrawn and computed again, with a warning in the log.

    Raises:
        StoreError: the store cannot be reached or refuses.
        ResourceError: no space, or a folder that cannot be written.
        Whatever `compute` raises; its work folder is then kept for the next attempt.
    """
    key = stage_key(stage, version, config, inputs)
    with _computing(store, key, stage, check):
        standing = usable(store, key) if not force else store.standing(key)
        if not force and standing.ref is not None:
            return standing.ref
        work = store.work_folder / key
        try:
            if force and not (work / FORCED_FILE).exists():
                shutil.rmtree(work, ignore_errors=True)
            work.mkdir(parents=True, exist_ok=True)
            if force:
                (work / FORCED_FILE).touch()
        except OSError as error:
            raise ResourceError(f"Folder {work}: {error.strerror}. Choose another home with CUDD_HOME.") from error
        attempt = store.begin(key, stage, params=params, tags=tags, standing=standing)
        try:
            record = compute(work)
            metrics = metrics_of(record) if metrics_of is not None else ()
        except BaseException as error:
            store.abandon(attempt, error)
            raise
        old = standing.ref  # set only if forced
        extra = work / EXTRA_FOLDER
        ref = store.commit(key, stage, record, attempt=attempt, extra=extra, metrics=metrics, replaces=old)
        shutil.rmtree(work, ignore_errors=True)
    return ref


def usable(store: Store, key: str) -> Standing:
    """Return what is stored under `key`, after withdrawing outputs whose bytes are missing or damaged.

    An output that is neither local nor cached is downloaded, since whoever reuses it is about to read it.
    """
    while (ref := (standing := store.standing(key)).ref) is not None:
        try:
            store.fetch_folder(ref)
        except ArtifactDamaged as error:
            _log.warning("stored output of stage %s is damaged and will be computed again: %s", ref.stage, error)
            store.invalidate(ref, str(error))
        else:
            break
    return standing


def fetch_input(store: Store, ref: Ref) -> Record:
    """Return the record of an input. If it is damaged, withdraw it, so that its stage computes it again.

    Raises:
        ArtifactDamaged: the input is damaged; run the stage that produces it again, then this one.
    """
    with _withdrawn_if_damaged(store, ref):
        return store.fetch(ref)


def fetch_input_folder(store: Store, ref: Ref) -> Path:
    """Return the folder of an input's record, for reading only. Raises like `fetch_input`."""
    with _withdrawn_if_damaged(store, ref):
        return store.fetch_folder(ref)


@contextmanager
def _withdrawn_if_damaged(store: Store, ref: Ref) -> Iterator[None]:
    try:
        yield
    except ArtifactDamaged as error:
        _log.warning("input from stage %s is damaged; that stage must run again: %s", ref.stage, error)
        store.invalidate(ref, str(error))
        raise


@contextmanager
def _computing(store: Store, key: str, stage: str, check: Callable[[], None] | None) -> Iterator[None]:
    """Hold this machine's lock on a key, so that it is looked up and computed once. The lock dies with its holder."""
    store.connect()
    lock = FileLock(store.lock_folder / f"{key}.lock")
    told = False
    while True:
        try:
            lock.acquire(timeout=_POLL_SECONDS)
            break
        except Timeout:
            if not told:
                _log.info("stage %s is being computed by another task or process; waiting for it", stage)
                told = True
            if check is not None:
                check()
    try:
        yield
    finally:
        lock.release()
