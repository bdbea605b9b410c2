from __future__ import annotations

import contextlib
import dataclasses
import errno
import gc
import os
import pickle
import platform
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from cudd_core.errors import ArtifactDamaged, Cancelled, ResourceError, StoreError
from cudd_core.records import Accuracy, Record, Shard, Verdicts
from tasks import store as store_module
from tasks import verified
from tasks.artifacts import Artifacts
from tasks.caching import cached_stage, fetch_input, usable
from tasks.mlflow_connection import artifact_location
from tasks.mlflow_runs import MlflowRuns
from tasks.passwords import redact
from tasks.pipeline_runs import ROUND_TAG, Link
from tasks.place import user_name
from tasks.refs import Ref
from tasks.store import Store

MakeStore = Callable[..., Store]
ROOT = Path(__file__).parents[2]
KEY = "0123456789abcdef" * 4
RECORD = Verdicts(torch.arange(4), torch.tensor([1, 0, 1, 1], dtype=torch.int32))
SHARD = Shard(
    torch.full((2, 3, 8, 8), 7, dtype=torch.uint8), torch.arange(2), torch.zeros(2).long(), torch.arange(2), 1
)


def scored(share: float) -> Accuracy:
    """Return a small record for each of some accuracies."""
    return Accuracy(torch.tensor([round(1000 * share)]), torch.tensor([1000]))


def runs(store: Store, key: str = KEY) -> dict[str, str]:
    """Run id → status of every attempt at a key."""
    return {run.info.run_id: run.info.status for run in store.runs(key)}


def stored_folder(store: Store, ref: Ref) -> Path:
    """Where a run's artifacts lie, whatever the store's caching."""
    uri: str = store.client.get_run(ref.run_id).info.artifact_uri
    return Path(uri.removeprefix("file://"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def same(a: Record, b: Record) -> bool:
    assert isinstance(a, Verdicts) and isinstance(b, Verdicts)
    return torch.equal(a.indices, b.indices) and torch.equal(a.predicted, b.predicted)


def stage(store: Store, counter: list[int], **options: Any) -> Ref:
    """A cached stage that counts how often it computes."""

    def compute(work: Path) -> Record:
        assert work.is_dir()
        counter.append(1)
        return RECORD

    return cached_stage(
        store, **{"stage": "classify", "version": 1, "config": {}, "inputs": {}, "compute": compute} | options
    )


def test_commit_lookup_fetch(make_store: MakeStore, tmp_path: Path) -> None:
    store, other = make_store("home"), make_store("elsewhere")
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "preview.png").write_bytes(b"png")
    assert store.lookup(KEY) is None

    rows = [("loss", 1.0 / step, step) for step in range(1, 1203)]
    attempt = store.begin(KEY, "classify", params={"seed": 0, "x": "y" * 9000}, tags={"block": "3"})
    assert runs(store) == {attempt: "RUNNING"} and store.lookup(KEY) is None
    ref = store.commit(KEY, "classify", RECORD, attempt=attempt, extra=extra, metrics=rows)
    assert ref.run_id == attempt

    found = other.lookup(KEY)
    assert found == dataclasses.replace(ref, reused=True)
    assert found is not None and same(other.fetch(found), RECORD)
    assert (other.fetch_folder(found) / "preview.png").read_bytes() == b"png"
    run = store.client.get_run(ref.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["cudd.digest"] == ref.digest and run.data.tags["block"] == "3"
    assert run.data.params["seed"] == "0"
    assert len(store.client.get_metric_history(ref.run_id, "loss")) == 1202
    assert not list(store.cache_folder.iterdir())


def test_store_survives_pickling(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDD_HOME", raising=False)
    store = make_store(copy_artifacts=True)
    again = pickle.loads(pickle.dumps(store))
    assert again.__reduce__() == store.__reduce__()


def test_a_store_that_arrives_on_another_machine_uses_the_home_there(
    make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Ray worker reads inputs through the context that stages were sent with."""
    sent = pickle.dumps(make_store())
    monkeypatch.setenv("CUDD_HOME", str(tmp_path / "worker"))
    there = pickle.loads(sent)
    assert there.cache_folder == tmp_path / "worker" / "cache"
    assert there.decoded_folder.is_relative_to(tmp_path / "worker")


@pytest.mark.parametrize("status", ["RUNNING", "FAILED", "KILLED"])
def test_unfinished_attempts_do_not_exist(store: Store, status: str) -> None:
    ref = store.commit(KEY, "classify", RECORD)
    store.client.update_run(ref.run_id, status=status)
    assert store.lookup(KEY) is None


def test_deleted_run_is_a_miss(store: Store, make_store: MakeStore) -> None:
    ref = store.commit(KEY, "classify", RECORD)
    store.client.delete_run(ref.run_id)
    assert store.lookup(KEY) is None
    with pytest.raises(ArtifactDamaged, match="deleted"):
        make_store().fetch(ref)
    with pytest.raises(ArtifactDamaged, match="no longer exists"):
        store.fetch(dataclasses.replace(ref, run_id="0" * 32))


def test_failed_and_cancelled_commits_leave_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.mlflow_calls.OUTAGE_WAITS", (0.01, 0.01))
    for error, status in ((OSError("boom"), "FAILED"), (Cancelled("stop"), "KILLED"), (KeyboardInterrupt(), "KILLED")):

        def broken(*_: object, error: BaseException = error) -> None:
            raise error

        store.connect()
        with monkeypatch.context() as patch:
            patch.setattr(LocalArtifactRepository, "log_artifacts", broken)
            with pytest.raises(StoreError if isinstance(error, OSError) else type(error)):
                store.commit(KEY, "classify", RECORD)
        assert status in runs(store).values() and "RUNNING" not in runs(store).values()
    assert store.lookup(KEY) is None
    assert not list(store.cache_folder.iterdir())


def test_the_second_of_two_commits_yields(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not FINISHED even for a moment."""
    first, second = make_store("a"), make_store("b")
    ended, end = list[str](), MlflowRuns.end
    monkeypatch.setattr(MlflowRuns, "end", lambda *given: (ended.append(given[2]), end(*given))[1])
    ref = first.commit(KEY, "classify", RECORD)
    other = second.commit(KEY, "classify", RECORD)
    assert other == dataclasses.replace(ref, reused=True)
    assert sorted(runs(first).values()) == ["FINISHED", "KILLED"] and ended == ["FINISHED", "KILLED"]


def test_race_ends_with_one_finished(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both writers look the key up before either finishes: the hardest case."""
    stores = [make_store("a"), make_store("b")]
    barrier, results = threading.Barrier(2), list[Ref]()
    original = MlflowRuns.end

    def together(self: MlflowRuns, run_id: str, status: Any) -> None:
        if status == "FINISHED":
            barrier.wait(20)
        original(self, run_id, status)
        if status == "FINISHED":
            barrier.wait(20)

    monkeypatch.setattr(MlflowRuns, "end", together)
    threads = [threading.Thread(target=lambda s=s: results.append(s.commit(KEY, "x", RECORD))) for s in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(runs(stores[0]).values()) == ["FINISHED", "KILLED"]
    assert results[0].run_id == results[1].run_id
    assert sorted(ref.reused for ref in results) == [False, True]


@pytest.mark.parametrize("spoilt", [1, 99])
def test_an_upload_that_does_not_come_back_as_sent_is_sent_again(
    spoilt: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, original = list[str](), LocalArtifactRepository.log_artifacts

    def spoiling(self: LocalArtifactRepository, local_dir: str, artifact_path: str | None = None) -> None:
        original(self, local_dir, artifact_path)
        sent.append(local_dir)
        if len(sent) <= spoilt:
            flip(Path(self.artifact_dir) / "record.json")

    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", spoiling)
    if spoilt == 1:
        assert same(store.fetch(store.commit(KEY, "classify", RECORD)), RECORD)
        assert len(sent) == 2
        return
    with pytest.raises(StoreError, match="uploaded 3 times and never came back as sent"):
        store.commit(KEY, "classify", RECORD)
    assert store.lookup(KEY) is None and list(runs(store).values()) == ["FAILED"]


def test_a_writer_that_sees_another_about_to_finish_lets_it(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or readers could see the one that is withdrawn a moment later."""
    ended, refs, original = list[str](), dict[str, Ref](), MlflowRuns.end
    about_to, let_go = threading.Event(), threading.Event()

    def end(self: MlflowRuns, run_id: str, status: Any) -> None:
        if not about_to.is_set():
            about_to.set()
            assert let_go.wait(60)
        ended.append(status)
        original(self, run_id, status)

    def commit(name: str) -> None:
        refs[name] = stores[name].commit(KEY, "classify", RECORD)

    monkeypatch.setattr(MlflowRuns, "end", end)
    monkeypatch.setattr(store_module, "SETTLE_SECONDS", 60)
    stores = {name: make_store(name) for name in ("first", "second")}
    threads = [threading.Thread(target=commit, args=(name,)) for name in stores]
    threads[0].start()
    assert about_to.wait(60)
    threads[1].start()
    threads[1].join(2)
    waited = threads[1].is_alive() and not ended
    let_go.set()
    for thread in threads:
        thread.join()
    assert waited and ended == ["FINISHED", "KILLED"]
    assert refs["second"] == dataclasses.replace(refs["first"], reused=True)


def test_many_threads_commit_different_keys(store: Store) -> None:
    refs, errors = list[Ref](), list[BaseException]()

    def work(number: int) -> None:
        try:
            refs.append(store.commit(f"{number:064x}", "classify", RECORD))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len({ref.run_id for ref in refs}) == 8


def test_two_results_for_one_key_are_reported(make_store: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store()
    ref = store.commit(KEY, "score", scored(0.5))
    assert store.commit(KEY, "score", scored(0.25)).digest == ref.digest
    assert "different results" in caplog.text


def test_attempts_that_were_killed_here_are_marked(make_store: MakeStore) -> None:
    """The machine's lock of a key is held by whoever begins: others of this home cannot be alive."""
    dead, elsewhere = make_store().begin(KEY, "classify"), make_store("elsewhere").begin(KEY, "classify")
    store = make_store()
    again = store.begin(KEY, "classify")
    assert runs(store) == {dead: "KILLED", elsewhere: "RUNNING", again: "RUNNING"}
    store.abandon(again, ValueError("no"))
    run = store.client.get_run(again)
    assert (run.info.status, run.data.tags["cudd.reason"]) == ("FAILED", "ValueError: no")


def test_old_attempts_are_marked_killed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = int(time.time() * 1000)
    client, experiment = store.client, store._connection.experiments[store.experiment]
    old, young, foreign = (
        client.create_run(experiment, start_time=now - age * 3_600_000, tags={"cudd.key": KEY, "mlflow.user": user})
        for age, user in ((25, user_name()), (1, user_name()), (25, "somebody"))
    )
    store.commit(KEY, "classify", RECORD)
    assert runs(store)[old.info.run_id] == "KILLED"
    assert runs(store)[young.info.run_id] == runs(store)[foreign.info.run_id] == "RUNNING"


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy_artifacts", [False, True])
@pytest.mark.parametrize("name", ["manifest.json", "record.json", "data/train-00000-of-00001.parquet"])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damaged_artifacts_are_found(
    make_store: MakeStore, name: str, damage: Callable[[Path], None], copy_artifacts: bool
) -> None:
    store = make_store(copy_artifacts=copy_artifacts)
    ref = make_store("writer").commit(KEY, "synthesize", SHARD)
    store.fetch(ref)
    damage(stored_folder(store, ref) / name)
    other = make_store("elsewhere", copy_artifacts=copy_artifacts)
    with pytest.raises(ArtifactDamaged, match=ref.run_id if copy_artifacts else "artifacts"):
        other.fetch(ref)
    if copy_artifacts:
        store.fetch(ref)
    assert not [path for path in other.cache_folder.iterdir() if not path.name.startswith(".")]


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damaged_cache_is_downloaded_again(
    make_store: MakeStore, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    store = make_store(copy_artifacts=True)
    ref = store.commit(KEY, "classify", RECORD)
    folder = store.fetch_folder(ref)
    assert folder == store.cache_folder / ref.digest
    damage(folder / "tensors.safetensors")
    assert same(store.fetch(ref), RECORD)
    assert "cached copy dropped" in caplog.text
    assert [path.name for path in store.cache_folder.iterdir()] == [ref.digest]


def test_a_cached_copy_that_rots_unnoticed_is_downloaded_again(make_store: MakeStore) -> None:
    """No file looks different since it was verified, but what is in one cannot be read."""
    store = make_store(copy_artifacts=True)
    ref = store.commit(KEY, "classify", RECORD)
    file = store.fetch_folder(ref) / "record.json"
    status = file.stat()
    file.write_bytes(b"x" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert same(store.fetch(ref), RECORD)


def test_hashes_are_checked_once_per_process(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[Path]()
    original = verified.verify_folder

    def counted(folder: Path, digest: str | None = None) -> Any:
        calls.append(folder)
        return original(folder, digest)

    monkeypatch.setattr(verified, "verify_folder", counted)
    ref = make_store().commit(KEY, "classify", RECORD)
    for _ in range(3):
        make_store().fetch(ref)
    assert len(calls) == 1


def test_cache_lets_threads_download_once(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = make_store("writer").commit(KEY, "classify", RECORD)
    store = make_store(copy_artifacts=True)
    downloads = list[Ref]()
    original = Artifacts.download
    monkeypatch.setattr(Artifacts, "download", lambda self, ref: (downloads.append(ref), original(self, ref)))
    threads = [threading.Thread(target=store.fetch, args=(ref,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(downloads) == 1


def test_a_key_is_looked_up_without_reading_every_run(store: Store) -> None:
    """The index is made in a database that lacks it, too; MLflow's own lead to every run that has such a tag."""
    folder = store.cache_folder.parent
    find = "SELECT run_uuid FROM tags WHERE key = 'cudd.key' AND value = ?"
    for _ in range(2):
        Store.from_environment(folder).connect()
        with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
            ((*_, plan),) = database.execute(f"EXPLAIN QUERY PLAN {find}", (KEY,))
            assert plan.endswith("(key=? AND value=?)")
            database.execute("DROP INDEX cudd_tags_by_value")


def test_reading_the_ledger_leaves_garbage_collection_as_it_was(store: Store) -> None:
    ref = store.commit(KEY, "classify", RECORD)
    assert store.ledger().stored[KEY].ref == dataclasses.replace(ref, reused=True)
    assert gc.isenabled()


def test_withdrawn_output_is_stored_afresh(store: Store) -> None:
    ref = store.commit(KEY, "classify", RECORD)
    store.invalidate(ref, "bytes changed")
    assert store.lookup(KEY) is None
    assert store.client.get_run(ref.run_id).data.tags["cudd.damaged"] == "bytes changed"
    again = store.commit(KEY, "classify", RECORD)
    assert again.run_id != ref.run_id and not again.reused
    store.invalidate(dataclasses.replace(ref, run_id="0" * 32), "a run that is gone")


# ---- cached stages --------------------------------------------------------------------------------------------------


def test_stage_is_computed_once(make_store: MakeStore) -> None:
    counter = list[int]()
    ref = stage(make_store(), counter)
    assert not ref.reused
    assert stage(make_store("elsewhere"), counter) == dataclasses.replace(ref, reused=True)
    assert len(counter) == 1
    for change in ({"version": 2}, {"config": {"a": 1}}, {"inputs": {"a": "b"}}, {"stage": "other"}):
        assert not stage(make_store(), counter, **change).reused


@pytest.mark.parametrize("copy_artifacts", [False, True])
@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_damaged_output_is_computed_again(
    make_store: MakeStore, damage: Callable[[Path], None], copy_artifacts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    counter = list[int]()
    ref = stage(make_store(), counter)
    damage(stored_folder(make_store(), ref) / "tensors.safetensors")
    again = stage(make_store("elsewhere", copy_artifacts=copy_artifacts), counter)
    assert not again.reused and len(counter) == 2
    assert again.run_id != ref.run_id and again.digest == ref.digest
    assert "damaged and will be computed again" in caplog.text
    assert runs(make_store(), ref.key)[ref.run_id] == "KILLED"
    assert stage(make_store(), counter).reused


@pytest.mark.parametrize("copy_artifacts", [False, True])
def test_what_is_stored_outlives_that_its_folder_is_away(make_store: MakeStore, copy_artifacts: bool) -> None:
    """A share that is not mounted, or a colleague's folder: nothing is withdrawn, and nothing made in its place."""
    counter = list[int]()
    ref = stage(make_store(copy_artifacts=copy_artifacts), counter)
    running = make_store("elsewhere", copy_artifacts=copy_artifacts).connect()
    root = stored_folder(running, ref).parents[2]
    away = root.rename(root.with_name("away"))
    for store in (running, make_store("later", copy_artifacts=copy_artifacts)):
        with pytest.raises(StoreError, match="not mounted") as caught:
            stage(store, counter)
        assert not isinstance(caught.value, ArtifactDamaged)
        assert not root.exists()
    away.rename(root)
    assert runs(make_store(), ref.key)[ref.run_id] == "FINISHED"
    assert stage(make_store("later"), counter).reused and len(counter) == 1


def test_an_empty_store_whose_folder_was_never_made_opens(make_store: MakeStore) -> None:
    store = make_store().connect()
    root = stored_folder(store, Ref("classify", KEY, store.begin(KEY, "classify"), "d" * 64, 1)).parents[2]
    shutil.rmtree(root)
    assert not stage(make_store("elsewhere"), []).reused


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE, errno.EACCES])
def test_what_cannot_be_read_is_not_damaged(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    counter = list[int]()
    ref = stage(make_store(), counter)
    verified.forget(stored_folder(make_store(), ref))

    def fails(self: Path) -> bytes:
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fails)
        with pytest.raises(StoreError, match=os.strerror(number)) as caught:
            stage(make_store("elsewhere"), counter)
    assert not isinstance(caught.value, ArtifactDamaged)
    assert stage(make_store("elsewhere"), counter).reused and len(counter) == 1


class _Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("sprung"),))


def test_a_planted_pickle_is_not_read(make_store: MakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a tensor file, and beside it: the first is damage, the second nobody's business."""
    monkeypatch.chdir(tmp_path)
    counter = list[int]()
    ref = stage(make_store(), counter)
    folder = stored_folder(make_store(), ref)
    (folder / "data.pkl").write_bytes(pickle.dumps(_Trap()))
    assert stage(make_store(), counter).reused
    (folder / "tensors.safetensors").write_bytes(pickle.dumps(_Trap()))
    assert not stage(make_store(), counter).reused
    assert not (tmp_path / "sprung").exists() and len(counter) == 2


def test_damaged_input_is_withdrawn(store: Store) -> None:
    ref = store.commit(KEY, "classify", RECORD)
    assert same(fetch_input(store, ref), RECORD)
    flip(stored_folder(store, ref) / "record.json")
    with pytest.raises(ArtifactDamaged, match=r"record\.json"):
        fetch_input(store, ref)
    assert store.lookup(KEY) is None and usable(store, KEY).ref is None


def test_force_replaces(store: Store) -> None:
    counter = list[int]()
    ref = stage(store, counter)
    forced = stage(store, counter, force=True)
    assert not forced.reused and len(counter) == 2 and forced.run_id != ref.run_id
    assert stage(store, counter) == dataclasses.replace(forced, reused=True)
    assert list(runs(store, ref.key).values()) == ["KILLED", "FINISHED"]


@pytest.mark.parametrize("copy_artifacts", [False, True])
def test_an_output_stays_until_the_one_that_is_forced_is_stored(
    make_store: MakeStore, copy_artifacts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(copy_artifacts=copy_artifacts)
    ref = stage(store, [])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "log_artifacts", full)
        with pytest.raises(ResourceError, match="Free some space"):
            stage(store, [], force=True)
    assert store.lookup(ref.key) == dataclasses.replace(ref, reused=True)

    seen = list[Ref | None]()
    upload = Artifacts.upload

    def looked_up(self: Artifacts, new: Ref, folder: Path) -> None:
        upload(self, new, folder)
        seen.append(make_store("reader").lookup(ref.key))

    monkeypatch.setattr(Artifacts, "upload", looked_up)
    again = stage(store, [], force=True)
    assert seen == [dataclasses.replace(ref, reused=True)]
    assert not again.reused and store.lookup(ref.key) == dataclasses.replace(again, reused=True)
    # Both have the same bytes, so what was read back is there for whoever reads it next.
    assert store.lies_here(again) and same(store.fetch(again), RECORD)


def test_at_no_time_is_a_forced_key_without_an_output(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever request a kill comes before, readers find the old output or the new one, and all of them the same."""
    store, reader = make_store(), make_store("reader")
    old = stage(store, [], compute=lambda work: scored(0.5))
    seen, ledgers = list[Ref | None](), list[Ref | None]()

    def watched(method: Callable[..., Any]) -> Callable[..., Any]:
        def watching(*arguments: Any, **named: Any) -> Any:
            seen.append(reader.lookup(old.key))
            stored = reader.ledger().stored.get(old.key)
            ledgers.append(stored.ref if stored is not None else None)
            return method(*arguments, **named)

        return watching

    for name in ("create_run", "log_batch", "update_run", "set_terminated"):
        monkeypatch.setattr(store.client, name, watched(getattr(store.client, name)))
    new = stage(store, [], compute=lambda work: scored(0.25), force=True)
    assert seen == ledgers and len(seen) >= 5
    answers = [ref.run_id if ref is not None else "" for ref in [*seen, reader.lookup(old.key)]]
    assert answers == [old.run_id] * answers.count(old.run_id) + [new.run_id] * answers.count(new.run_id)
    # The old one is told from an accident by its reason, after the new one was there.
    assert answers.count(new.run_id) > 1
    assert reader.client.get_run(old.run_id).data.tags["cudd.damaged"] == "computed again on request"


@pytest.mark.parametrize("seen", ["running", "not at all"])
def test_an_output_that_is_replaced_between_two_pages_of_the_ledger_is_not_missed(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """The new one was on a page that was read before, the old one is on one that is read after that."""
    store, early = make_store(), list[Any]()
    old = stage(store, [], compute=lambda work: scored(0.5))

    def compute(work: Path) -> Record:
        early.extend(run for run in store.runs(old.key) if run.info.run_id != old.run_id and seen == "running")
        return scored(0.25)

    new = stage(store, [], compute=compute, force=True)
    late = [run for run in store.runs(old.key) if run.info.run_id == old.run_id]
    assert [run.info.status for run in early] == ["RUNNING"] * (seen == "running") and len(late) == 1
    each = store._runs.each
    monkeypatch.setattr(store._runs, "each", lambda *where: each(*where) if where[1:] else iter([*early, *late]))
    assert store.ledger().stored[old.key].run_id == new.run_id


def test_what_was_replaced_stays_so(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a kill left it as it was, and what replaced it was itself replaced, or found damaged."""

    def forced(score: float) -> Ref:
        return stage(make_store(), [], compute=lambda work: scored(score), force=True)

    def refuses(*_: object) -> None:
        raise StoreError("away")

    oldest = stage(make_store(), [], compute=lambda work: scored(0.5))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_withdraw", refuses)
        old = forced(0.25)
    assert runs(make_store(), oldest.key)[oldest.run_id] == "FINISHED"
    new = forced(0.125)
    for store in (make_store(), make_store("elsewhere")):
        assert store.lookup(oldest.key) == dataclasses.replace(new, reused=True)
        assert store.ledger().stored[oldest.key].run_id == new.run_id
    assert runs(make_store(), oldest.key)[new.run_id] == "FINISHED"
    make_store().invalidate(new, "bytes changed")
    assert make_store().lookup(oldest.key) is None
    assert old.run_id not in {oldest.run_id, new.run_id}


def test_of_two_machines_that_force_a_key_the_first_counts(make_store: MakeStore) -> None:
    old = stage(make_store(), [], compute=lambda work: scored(0.5))
    firsts = list[Ref]()

    def overtaken(work: Path) -> Record:
        firsts.append(stage(make_store("b"), [], compute=lambda work: scored(0.25), force=True))
        return scored(0.125)

    second = stage(make_store("a"), [], compute=overtaken, force=True)
    (first,) = firsts
    assert not first.reused and second.reused and second.run_id == first.run_id != old.run_id
    assert sorted(runs(make_store(), old.key).values()) == ["FINISHED", "KILLED", "KILLED"]


def test_a_forced_attempt_goes_on_from_checkpoints_of_forced_ones_alone(store: Store) -> None:
    seen = list[str]()

    def compute(work: Path) -> Record:
        checkpoint = work / "checkpoint"
        seen.append(checkpoint.read_text() if checkpoint.exists() else "")
        checkpoint.write_text(f"{len(seen)}")
        if len(seen) in (1, 2, 3):
            raise Cancelled("stop")
        return RECORD

    for force in (False, True, True):
        with pytest.raises(Cancelled):
            stage(store, [], compute=compute, force=force)
    stage(store, [], compute=compute, force=True)
    assert seen == ["", "", "2", "3"]
    assert not list(store.work_folder.iterdir())
    stage(store, [], compute=compute, force=True)
    assert seen[-1] == ""


def test_work_folder_outlives_a_failure_and_extra_files_are_stored(store: Store) -> None:
    seen = list[bool]()

    def compute(work: Path) -> Record:
        seen.append((work / "checkpoint").exists())
        (work / "checkpoint").write_text("epoch 5")
        (work / "extra").mkdir(exist_ok=True)
        (work / "extra" / "preview.png").write_bytes(b"png")
        if len(seen) == 1:
            raise Cancelled("stop")
        return RECORD

    with pytest.raises(Cancelled):
        stage(store, [], compute=compute)
    ref = stage(store, [], compute=compute, metrics_of=lambda record: [("n", 4.0, 0)])
    assert seen == [False, True]
    assert not list(store.work_folder.iterdir())
    assert (store.fetch_folder(ref) / "preview.png").exists() and not (store.fetch_folder(ref) / "checkpoint").exists()
    assert store.client.get_run(ref.run_id).data.metrics == {"n": 4.0}


@pytest.mark.parametrize(("error", "status"), [(ValueError("no such image"), "FAILED"), (Cancelled("stop"), "KILLED")])
def test_an_attempt_that_fails_ends_at_once_and_says_why(error: Exception, status: str, store: Store) -> None:
    def compute(work: Path) -> Record:
        raise error

    with pytest.raises(type(error)):
        stage(store, [], compute=compute)
    (attempt,) = store.ledger().attempts
    assert (attempt.status, attempt.reason) == (status, f"{type(error).__name__}: {error}")


def test_one_machine_computes_a_key_once(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.caching._POLL_SECONDS", 0.05)
    counter, polls, results = list[int](), list[int](), list[Ref]()

    def slow(work: Path) -> Record:
        counter.append(1)
        time.sleep(0.5)
        return RECORD

    def work() -> None:
        results.append(stage(make_store(), [], compute=slow, check=lambda: polls.append(1)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counter) == 1 and polls
    assert sorted(ref.reused for ref in results) == [False, True, True]


def test_waiting_can_be_cancelled(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.caching._POLL_SECONDS", 0.05)

    stopped = list[bool]()

    def stop() -> None:
        raise Cancelled("stop")

    def wait() -> None:
        with pytest.raises(Cancelled):
            stage(store, [], check=stop)
        stopped.append(True)

    def compute(work: Path) -> Record:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()
        return RECORD

    assert not stage(store, [], compute=compute).reused
    assert stopped


# ---- pipeline runs --------------------------------------------------------------------------------------------------


def test_pipeline_runs(store: Store, tmp_path: Path) -> None:
    ref = store.commit(KEY, "classify", RECORD)
    (tmp_path / "files" / "report").mkdir(parents=True)
    (tmp_path / "files" / "report" / "report.md").write_text("# Report")
    run_id = store.pipelines.start("digits", {"recipe": "digits"}, {f"p{i}": i for i in range(150)})
    child = store.pipelines.start("curriculum 1", {ROUND_TAG: "curriculum 1"}, {}, parent=run_id)
    store.pipelines.link(run_id, dataclasses.replace(ref, stage="squeeze", run_id="another", digest="0" * 64))
    store.pipelines.log_metrics(run_id, [("accuracy", 0.5, 1), ("accuracy", float("nan"), 2)])
    store.pipelines.log_files(run_id, tmp_path / "files")
    store.pipelines.link(child, ref, dataclasses.replace(ref, key="f" * 64, stage="select", run_id="one", reused=True))
    assert store.pipelines.any_alive_here() and len(list(store.lock_folder.glob("run-*"))) == 2
    store.pipelines.finish(child)
    store.pipelines.finish(run_id, "FAILED")
    assert not list(store.lock_folder.glob("run-*")) and not store.pipelines.any_alive_here()

    client = store.client
    run, nested = client.get_run(run_id), client.get_run(child)
    assert run.info.status == "FAILED" and len(run.data.params) == 150
    assert [file.path for file in client.list_artifacts(run_id, "report")] == ["report/report.md"]
    assert nested.data.tags["mlflow.parentRunId"] == run_id
    assert nested.data.tags[f"cudd.stage.classify.{KEY[:16]}"] == ref.run_id
    assert store.pipelines.links(run_id) == {
        ref.run_id: Link("curriculum 1", f"classify.{KEY[:16]}"),
        "one": Link("curriculum 1", f"select.{'f' * 16}"),
        "another": Link("", f"squeeze.{KEY[:16]}"),
    }
    logged = client.get_metric_history(run_id, "accuracy")
    assert [each.step for each in logged] == [1, 2] and logged[0].value == 0.5
    found = client.search_runs([run.info.experiment_id], f"dataset.digest = '{ref.digest[:36]}'")
    assert [item.info.run_id for item in found] == [child]


def test_threads_link_the_same_output_to_one_run(store: Store) -> None:
    ref, run_id, errors = store.commit(KEY, "classify", RECORD), store.pipelines.start("x", {}, {}), list[Exception]()

    def link() -> None:
        try:
            store.pipelines.link(run_id, ref)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=link) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


# Starts a run with a nested one in the store that is named, says so, and waits to be killed.
LIVES = """
import sys, time
from pathlib import Path
from tasks.store import Store

store = Store(sys.argv[1], Path(sys.argv[2]))
run = store.pipelines.start("distill", {}, {})
print(run, store.pipelines.start("curriculum 1", {}, {}, parent=run), flush=True)
time.sleep(600)
"""


def status(store: Store, run: str) -> str:
    found: str = store.client.get_run(run).info.status
    return found


def test_a_killed_process_s_runs_are_ended_by_the_next_of_its_home(
    make_store: MakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a container made anew, which has another host name; and not before the process is dead."""
    store, elsewhere = make_store().connect(), make_store("elsewhere")
    command = [sys.executable, "-c", LIVES, store.tracking_uri, str(store.cache_folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            started = process.stdout.readline().split()
            monkeypatch.setattr(platform, "node", lambda: "another-pod")
            store.pipelines.end_dead()
            assert [status(store, run) for run in started] == ["RUNNING", "RUNNING"]
            assert store.pipelines.any_alive_here() and not elsewhere.pipelines.any_alive_here()
        finally:
            process.send_signal(signal.SIGKILL)
    assert not store.pipelines.any_alive_here()
    elsewhere.pipelines.end_dead()
    assert [status(store, run) for run in started] == ["RUNNING", "RUNNING"]
    make_store().pipelines.end_dead()
    assert [status(store, run) for run in started] == ["KILLED", "KILLED"]
    assert not list(store.lock_folder.glob("run-*"))


def test_a_run_is_never_taken_for_a_dead_one(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not right after it was made, not while it goes on, and not when it ends as somebody looks."""
    store, other = make_store().connect(), make_store().connect()
    create, search = store.client.create_run, other.pipelines.search

    def looked_at(*arguments: Any, **named: Any) -> Any:
        made = create(*arguments, **named)
        other.pipelines.end_dead()
        return made

    monkeypatch.setattr(store.client, "create_run", looked_at)
    run = store.pipelines.start("distill", {}, {})
    for _ in range(2):
        other.pipelines.end_dead()
        assert status(store, run) == "RUNNING"

    def ends_meanwhile(text: str = "") -> list[Any]:
        found = search(text)
        assert [each.info.run_id for each in found] == [run]
        store.pipelines.finish(run)
        return found

    monkeypatch.setattr(other.pipelines, "search", ends_meanwhile)
    other.pipelines.end_dead()
    assert status(store, run) == "FINISHED"
    assert not list(store.lock_folder.glob("run-*"))


def test_a_run_that_the_store_would_not_end_is_ended_later(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.pipelines.start("distill", {}, {})

    def refuses(*_: object) -> None:
        raise StoreError("away")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="away"):
        patch.setattr(MlflowRuns, "end", refuses)
        store.pipelines.finish(run)
    assert status(store, run) == "RUNNING"
    store.pipelines.end_dead()
    assert status(store, run) == "KILLED"


@pytest.mark.parametrize("refused", ["start", "log"])
def test_a_run_that_the_store_would_not_begin_leaves_no_lock(
    store: Store, monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise StoreError("away")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match="away"):
        patch.setattr(MlflowRuns, refused, refuses)
        store.pipelines.start("distill", {}, {"p": 1})
    assert not store.pipelines.any_alive_here() and not list(store.lock_folder.glob("run-*"))


def test_two_machines_that_are_called_alike_are_two(make_store: MakeStore, tmp_path: Path) -> None:
    """The same host name and the same path, but not the same folder: locks do not hold between them."""
    there = make_store().begin(KEY, "classify")
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    (tmp_path / "home").rename(tmp_path / "away")
    here, copied = make_store().begin(KEY, "classify"), make_store("copy").begin(KEY, "classify")
    assert runs(make_store()) == {there: "RUNNING", here: "RUNNING", copied: "RUNNING"}


def test_all_who_open_a_home_at_once_are_at_one_place(make_store: MakeStore, tmp_path: Path) -> None:
    stores = [make_store().connect() for _ in range(8)]
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with ThreadPoolExecutor(8) as pool:
        places = set(pool.map(lambda store: store._place.name, stores))
    assert places == {make_store("link")._place.name}


# ---- environment and errors -----------------------------------------------------------------------------------------


def test_from_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT", "CUDD_COPY_ARTIFACTS", "CUDD_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    local = Store.from_environment()
    assert local.tracking_uri == f"sqlite:///{tmp_path}/.cudd/mlflow.db"
    assert local.artifact_root == str(tmp_path / ".cudd/artifacts") and not local.copy_artifacts
    monkeypatch.setenv("CUDD_COPY_ARTIFACTS", "1")
    assert Store.from_environment().copy_artifacts
    monkeypatch.setenv("CUDD_HOME", str(tmp_path / "house"))
    assert Store.from_environment().cache_folder == tmp_path / "house/cache"
    assert Store.from_environment(tmp_path / "x").cache_folder == tmp_path / "x/cache"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://team:5000")
    assert Store.from_environment().artifact_root is None
    monkeypatch.setenv("CUDD_ARTIFACT_ROOT", "s3://bucket/cudd/")
    assert artifact_location(Store.from_environment().artifact_root, "x") == "s3://bucket/cudd/x"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDD_ARTIFACT_ROOT", "arts")
    assert Store.from_environment().artifact_root == str(tmp_path / "arts")


def test_passwords_are_hidden(store: Store, make_store: MakeStore) -> None:
    assert redact("see postgresql://me:secret@db:5432/x and s3://b/c") == "see postgresql://***@db:5432/x and s3://b/c"
    assert "secret" not in Store("http://me:secret@host", Path("x")).display_uri
    run_id = store.pipelines.start("x", {"t": "https://u:secret@h/"}, {"p": "https://u:secret@h/"})
    run = store.client.get_run(run_id)
    assert "secret" not in str(run.data)


def test_unwritable_home(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    home = tmp_path / "file" / "home"
    with pytest.raises(ResourceError, match="CUDD_HOME") as caught:
        Store(f"sqlite:///{home}/mlflow.db", home / "cache").lookup(KEY)
    assert str(home) in str(caught.value)


def test_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_record", full)
        with pytest.raises(ResourceError, match="No space left"):
            store.commit(KEY, "classify", RECORD)
    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "log_artifacts", full)
        with pytest.raises(ResourceError, match="Free some space"):
            store.commit(KEY, "classify", RECORD)
    assert list(runs(store).values()) == ["FAILED", "FAILED"]


@pytest.mark.parametrize("below", ["", "home"])
def test_a_file_in_the_place_of_a_folder(below: str, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(ResourceError, match=f": {tmp_path}/notes is a file. Move it away, or choose another home"):
        Store.from_environment(tmp_path / "notes" / below).connect()


def test_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database at all")
    with pytest.raises(StoreError, match="not a SQLite database"):
        Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "cache").connect()


def test_a_server_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9 does not answer"):
        Store("http://127.0.0.1:9", tmp_path / "cache").connect()


def test_a_busy_database_is_waited_for(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.connect()
    failures = iter([sqlite3.OperationalError("database is locked")] * 2)

    def busy(*args: Any, **options: Any) -> Any:
        for error in failures:
            raise error
        return original(*args, **options)

    original = store.client.create_run
    monkeypatch.setattr(store.client, "create_run", busy)
    assert store.commit(KEY, "classify", RECORD).key == KEY


def test_deleted_experiment(store: Store, make_store: MakeStore) -> None:
    store.client.delete_experiment(store._connection.experiments["stages"])
    with pytest.raises(StoreError, match=r"MLFLOW_TRACKING_URI=sqlite:///.* mlflow experiments restore"):
        make_store().connect()


def test_keys_are_hex(store: Store) -> None:
    for bad in ("x' or '1' = '1", KEY[:-1], ""):
        with pytest.raises(ValueError, match="not a stage key"):
            store.lookup(bad)


def test_first_start_leaves_a_whole_database(template: Path) -> None:
    """The template was made by two threads at once, over what a killed first start had left."""
    assert sorted(path.name for path in template.parent.iterdir() if not path.name.endswith(".lock")) == [
        "artifacts",
        "cache",
        "locks",
        "mlflow.db",
    ]
    with sqlite3.connect(template) as database:
        names = [name for (name,) in database.execute("select name from experiments order by name")]
    database.close()
    assert names == ["Default", "cudd-runs", "cudd-stages"]
