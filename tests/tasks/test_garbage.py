"""What `cudd gc` takes and what it leaves: work that goes on, what is about to be reused, what may be gone on from."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from cudd_core.errors import Cancelled, ConfigError
from cudd_core.records import Record, Verdicts
from tasks.artifacts import Artifacts
from tasks.caching import cached_stage
from tasks.garbage import find_garbage, remove_garbage
from tasks.refs import Ref
from tasks.store import Store

KEY, OTHER = "0123456789abcdef" * 4, "f" * 64
RECORD = Verdicts(torch.arange(4), torch.zeros(4, dtype=torch.int32))


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    return make_store().connect()


def began(store: Store) -> str:
    return store.pipelines.start("distill", {}, {})


def checkpoint(store: Store, key: str) -> Path:
    file = store.work_folder / key / "checkpoint.safetensors"
    file.parent.mkdir(parents=True)
    file.touch()
    return file.parent


def test_finished_outputs_stay_while_a_run_goes_on(store: Store) -> None:
    """It may be about to reuse them."""
    ref = store.commit(KEY, "classify", RECORD)
    run = began(store)
    assert find_garbage(store, hours=0).unreferenced == ()
    store.pipelines.finish(run)
    assert [each.run_id for each in find_garbage(store, hours=0).unreferenced] == [ref.run_id]


def store_in(home: Path) -> Store:
    # The template's own experiments have no artifact root.
    return Store(f"sqlite:///{home / 'mlflow.db'}", home / "cache", str(home / "artifacts"), experiment="stages")


def test_a_copy_of_a_home_leaves_the_original_s_outputs(template: Path, tmp_path: Path) -> None:
    """Its database names the same files. A home that was moved has a link in its old place, and is no copy."""
    home = tmp_path / "original"
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    ref = store_in(home).commit(KEY, "classify", RECORD)
    shutil.copytree(home, tmp_path / "copy")
    with pytest.raises(ConfigError, match=f"copy of {home} .* CUDD_HOME={home}"):
        find_garbage(store_in(tmp_path / "copy"), hours=0)
    shutil.rmtree(tmp_path / "copy")
    home.rename(tmp_path / "moved")
    home.symlink_to(tmp_path / "moved")
    moved = store_in(tmp_path / "moved")
    assert [each.run_id for each in find_garbage(moved, hours=0).unreferenced] == [ref.run_id]


def test_a_checkpoint_that_somebody_works_with_stays(store: Store) -> None:
    """Of a key that is stored: a stage that was forced, or that another machine finished first."""
    store.commit(KEY, "classify", RECORD)
    folder = checkpoint(store, KEY)
    garbage = find_garbage(store, hours=0)
    assert garbage.checkpoints == (folder,)
    with FileLock(store.lock_folder / f"{KEY}.lock"):
        remove_garbage(store, garbage)
        assert folder.exists()
    remove_garbage(store, find_garbage(store, hours=0))
    assert not folder.exists()


def test_scratch_of_whoever_is_at_work_stays(store: Store) -> None:
    """What is uploaded or downloaded lies there; a folder that was left goes after a day, once nobody is at work."""
    new, left, copy = (store.cache_folder / name for name in (".tmp-new", ".tmp-left", "c" * 64))
    for folder in (new, left, copy):
        folder.mkdir()
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    run = began(store)
    assert find_garbage(store, hours=0).local == (copy,)
    store.pipelines.finish(run)
    assert find_garbage(store, hours=0).local == (left, copy)
    assert find_garbage(store, hours=1).local == (left,)
    assert find_garbage(store, hours=48).local == ()


def test_decoded_images_stay_while_a_run_goes_on(store: Store) -> None:
    """It says that it reads them only when it opens them, which was days ago."""
    decoded = store.decoded_folder / OTHER
    decoded.mkdir(parents=True)
    days_ago = time.time() - 72 * 3600
    os.utime(decoded, (days_ago, days_ago))
    run = began(store)
    assert find_garbage(store, hours=24).local == ()
    store.pipelines.finish(run)
    assert find_garbage(store, hours=24).local == (decoded,)
    assert find_garbage(store, hours=96).local == ()


def test_checkpoints_of_a_forced_attempt_stay_for_a_while(store: Store) -> None:
    """Its key is stored, but its work is not finished."""

    def forced(compute: Callable[[Path], Record], force: bool) -> None:
        cached_stage(store, stage="x", version=1, config={}, inputs={}, compute=compute, force=force)

    def stopped(work: Path) -> Record:
        (work / "checkpoint.safetensors").touch()
        raise Cancelled("stop")

    forced(lambda work: RECORD, False)
    with pytest.raises(Cancelled):
        forced(stopped, True)
    (folder,) = store.work_folder.iterdir()
    assert find_garbage(store, hours=1).checkpoints == ()
    assert find_garbage(store, hours=0).checkpoints == (folder,)


def test_a_checkpoint_stays_as_long_as_the_run_that_it_is_of(store: Store) -> None:
    run = began(store)
    attempt = store.begin(KEY, "squeeze", tags={"cudd.pipeline_run": run})
    store.abandon(attempt, KeyboardInterrupt())
    store.pipelines.finish(run, "KILLED")
    folder, orphan = checkpoint(store, KEY), checkpoint(store, OTHER)
    for _ in range(2):
        garbage = find_garbage(store, hours=0)
        assert (garbage.abandoned, garbage.checkpoints) == ((), (orphan,))
        assert find_garbage(store, hours=1).checkpoints == ()
        remove_garbage(store, find_garbage(store, hours=1))
    remove_garbage(store, garbage)
    assert folder.exists() and not orphan.exists()
    store.client.delete_run(run)
    garbage = find_garbage(store, hours=0)
    assert [each.run_id for each in garbage.abandoned] == [attempt] and garbage.checkpoints == (folder,)
    remove_garbage(store, garbage)
    assert not folder.exists() and not find_garbage(store, hours=0).abandoned


def test_another_machine_s_gc_leaves_what_a_checkpoint_here_belongs_to(make_store: Callable[..., Store]) -> None:
    """Attempts say whose a checkpoint is, and only one machine has it."""
    here, there = make_store("here").connect(), make_store("there").connect()
    run = began(here)
    here.abandon(here.begin(KEY, "squeeze", tags={"cudd.pipeline_run": run}), KeyboardInterrupt())
    here.pipelines.finish(run, "KILLED")
    folder = checkpoint(here, KEY)
    assert find_garbage(there, hours=0).abandoned == ()
    remove_garbage(there, find_garbage(there, hours=0))
    assert find_garbage(here, hours=0).checkpoints == () and folder.exists()


def test_a_run_that_was_silent_for_a_week_does_not_keep_what_nobody_needs(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine died, so nobody ever marks it. One of this machine, whose lock is held, may be in a long stage."""
    here, there = make_store("here").connect(), make_store("there").connect()
    ref = here.commit(KEY, "classify", RECORD)
    run = began(there)
    there.abandon(there.begin(OTHER, "squeeze", tags={"cudd.pipeline_run": run}), KeyboardInterrupt())
    now, days = time.time(), 24 * 3600
    for after, going_on in ((6, (run,)), (8, ())):
        monkeypatch.setattr("tasks.garbage.time.time", lambda after=after: now + after * days)
        garbage = find_garbage(here, hours=0)
        assert garbage.going_on == going_on
        assert [each.run_id for each in garbage.unreferenced] == ([] if going_on else [ref.run_id])
    assert find_garbage(there, hours=0).going_on == (run,)


def test_of_many_attempts_at_what_is_not_made_yet_the_last_one_stays(store: Store) -> None:
    run = began(store)
    attempts = []
    for _ in range(3):
        attempts.append(store.begin(KEY, "squeeze", tags={"cudd.pipeline_run": run}))
        store.abandon(attempts[-1], KeyboardInterrupt())
        time.sleep(0.002)  # MLflow counts in milliseconds
    store.pipelines.finish(run, "KILLED")
    assert sorted(each.run_id for each in find_garbage(store, hours=0).abandoned) == sorted(attempts[:2])


def test_a_run_that_a_page_passed_over_keeps_its_outputs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = began(store)
    ref = store.commit(KEY, "classify", RECORD)
    store.pipelines.link(run, ref)
    store.pipelines.finish(run)
    all_runs = store.pipelines.search()
    answers = [[], all_runs, all_runs]
    monkeypatch.setattr(type(store.pipelines), "search", lambda self, text="": [] if text else answers.pop(0))
    assert find_garbage(store, hours=0).unreferenced == () and not answers


def test_what_was_nested_in_a_deleted_run_keeps_nothing(store: Store) -> None:
    """MLflow deletes the outer run alone."""
    outer = began(store)
    inner = store.pipelines.start("curriculum 1", {}, {}, parent=outer)
    ref = store.commit(KEY, "classify", RECORD)
    store.pipelines.link(inner, ref)
    for run in (inner, outer):
        store.pipelines.finish(run)
    assert find_garbage(store, hours=0).unreferenced == ()
    store.client.delete_run(outer)
    assert [each.run_id for each in find_garbage(store, hours=0).unreferenced] == [ref.run_id]


def test_a_cached_copy_that_vanishes_between_check_and_reading_is_no_damage(
    make_store: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where gc runs beside a run."""
    store = make_store(copy_artifacts=True).connect()
    ref = store.commit(KEY, "classify", RECORD)
    fetch_folder, calls = store.fetch_folder, []

    def fetched(wanted: Ref) -> Path:
        calls.append(folder := fetch_folder(wanted))
        if len(calls) == 1:
            shutil.rmtree(folder)
        return folder

    monkeypatch.setattr(store, "fetch_folder", fetched)
    found = store.fetch(ref)
    assert isinstance(found, Verdicts) and torch.equal(found.indices, RECORD.indices) and len(calls) == 2
    assert store.lookup(KEY) is not None


def test_a_removal_that_is_killed_leaves_nothing_to_reuse_and_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an output's files may be gone."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    ref = store.commit(KEY, "classify", RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(Artifacts, "delete", killed)
        with pytest.raises(KeyboardInterrupt):
            remove_garbage(store, find_garbage(store, hours=0))
    assert store.lookup(KEY) is None
    left = find_garbage(store, hours=0)
    assert [each.run_id for each in left.abandoned] == [ref.run_id]
    remove_garbage(store, left)
    assert store.runs(KEY) == []


def test_a_removed_output_leaves_no_cached_copy(make_store: Callable[..., Store]) -> None:
    store = make_store(copy_artifacts=True).connect()
    folder = store.fetch_folder(store.commit(KEY, "classify", RECORD))
    found = find_garbage(store, hours=0)
    assert folder.is_dir() and folder in found.local
    remove_garbage(store, dataclasses.replace(found, local=()))  # as if the copy were too young
    assert not folder.exists()


def test_what_a_kept_run_made_stays_even_if_it_ended_before_it_was_linked(store: Store) -> None:
    """A killed run goes on from there."""
    run = began(store)
    attempt = store.begin(KEY, "classify", tags={"cudd.pipeline_run": run})
    ref = store.commit(KEY, "classify", RECORD, attempt=attempt)
    store.pipelines.finish(run, "KILLED")
    assert find_garbage(store, hours=0).unreferenced == ()
    store.client.delete_run(run)
    assert [each.run_id for each in find_garbage(store, hours=0).unreferenced] == [ref.run_id]


def test_work_stays_while_a_run_goes_on_except_checkpoints_of_what_is_finished(store: Store) -> None:
    """A run makes the folder before it begins the attempt, and its attempts are RUNNING."""
    run = began(store)
    attempt = store.begin(KEY, "squeeze", tags={"cudd.pipeline_run": "a run of somebody else"})
    store.commit(OTHER, "classify", RECORD)
    begun, finished, unknown = (checkpoint(store, key) for key in (KEY, OTHER, "a" * 64))
    garbage = find_garbage(store, hours=0)
    assert (garbage.abandoned, garbage.checkpoints) == ((), (finished,))
    assert find_garbage(store, hours=1).checkpoints == (finished,), "however young"
    store.pipelines.finish(run)
    garbage = find_garbage(store, hours=0)
    assert [each.run_id for each in garbage.abandoned] == [attempt]
    assert set(garbage.checkpoints) == {begun, finished, unknown}
    assert find_garbage(store, hours=1).checkpoints == (finished,)


def test_what_would_be_freed_is_counted_in_bytes(store: Store) -> None:
    """Outputs, copies and checkpoints; of a sparse file, what was written."""
    ref = store.commit(KEY, "classify", RECORD)
    copy, work = store.cache_folder / ("c" * 64), store.work_folder / OTHER
    for folder, size in ((copy, 100_000), (work, 200_000)):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"\1" * size)
    with (work / "sparse").open("wb") as file:
        file.truncate(10**9)
    garbage = find_garbage(store, hours=0)
    assert (garbage.local, garbage.checkpoints) == ((copy,), (work,))
    blocks = 2 * 4096
    assert ref.bytes + 300_000 <= garbage.bytes <= ref.bytes + 300_000 + blocks
