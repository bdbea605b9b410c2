"""What a store promises, on every kind of store that a team may have."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.servers import BUCKET, S3, forget_clients
from cudd_core.codec import content_digest
from cudd_core.errors import ArtifactDamaged, StoreError
from cudd_core.records import Record, Shard
from tasks import store as store_module
from tasks.artifacts import Artifacts
from tasks.caching import cached_stage
from tasks.refs import Ref
from tasks.store import Store

KEY = "0123456789abcdef" * 4
RECORD = Shard(
    torch.arange(2 * 3 * 8 * 8, dtype=torch.uint8).view(2, 3, 8, 8),
    torch.arange(2),
    torch.zeros(2).long(),
    torch.arange(2),
    1,
)
KINDS = ("folder", "server, S3", "server, proxied S3", "PostgreSQL, S3")


@dataclasses.dataclass(frozen=True)
class Machines:
    """Stores of one database and artifact root, one a machine. `s3` holds the artifacts, if not a folder."""

    make: Callable[[str], Store]
    s3: S3 | None = None

    def __call__(self, machine: str) -> Store:
        return self.make(machine)


@pytest.fixture(params=KINDS)
def machines(request: pytest.FixtureRequest, tmp_path: Path) -> Machines:
    """Nothing is in them yet: the servers live on, so every test has an experiment to itself."""
    name, kind = uuid.uuid4().hex, request.param
    root: str | None
    if kind == "folder":
        return Machines(request.getfixturevalue("make_store"))
    s3 = request.getfixturevalue("s3")
    if kind == "PostgreSQL, S3":
        uri, root = request.getfixturevalue("postgres")("mlflow"), f"{s3.uri}/direct"
    else:
        uri, root = request.getfixturevalue("tracking_server"), None if "proxied" in kind else f"{s3.uri}/direct"
    return Machines(lambda machine: Store(uri, tmp_path / machine / "cache", root, name), s3)


def same(a: Record, b: Record) -> bool:
    return content_digest(a) == content_digest(b)


def statuses(store: Store) -> list[str]:
    return sorted(run.info.status for run in store.runs(KEY))


def change(store: Store, ref: Ref, s3: S3 | None, edit: Callable[[bytes], bytes | None]) -> None:
    """Edit a stored file of an output, behind the store's back; None deletes it."""
    if s3 is None:
        path = store.fetch_folder(ref) / "record.json"
        data = edit(path.read_bytes())
        path.unlink() if data is None else path.write_bytes(data)
        return
    (file,) = s3.folder.glob(f"{BUCKET}/**/{ref.run_id}/artifacts/record.json")
    name, client = file.relative_to(s3.folder / BUCKET).as_posix(), s3.client()
    data = edit(file.read_bytes())
    if data is None:
        client.delete_object(Bucket=BUCKET, Key=name)
    else:
        client.put_object(Bucket=BUCKET, Key=name, Body=data)


def test_contract(machines: Machines, tmp_path: Path) -> None:
    store, other = machines("a"), machines("b")
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "preview.png").write_bytes(b"png")
    assert store.lookup(KEY) is None

    # commit, lookup, fetch
    attempt = store.begin(KEY, "synthesize", params={"seed": 0}, tags={"block": "3"})
    rows = [("loss", 1.0 / step, step) for step in range(1, 1003)]
    ref = store.commit(KEY, "synthesize", RECORD, attempt=attempt, extra=extra, metrics=rows)
    found = other.lookup(KEY)
    assert found == dataclasses.replace(ref, reused=True)
    assert found is not None and same(other.fetch(found), RECORD) and same(store.fetch(ref), RECORD)
    assert (other.fetch_folder(found) / "preview.png").read_bytes() == b"png"
    assert other.reference(ref.run_id) == found
    run = other.client.get_run(ref.run_id)
    assert run.info.status == "FINISHED" and run.data.params == {"seed": "0"} and run.data.tags["block"] == "3"
    assert len(other.client.get_metric_history(ref.run_id, "loss")) == 1002

    # a second writer yields
    assert other.commit(KEY, "synthesize", RECORD) == found
    assert statuses(store) == ["FINISHED", "KILLED"]

    # pipeline runs and links
    run_id = store.pipelines.start("digits", {"recipe": "digits"}, {f"p{i}": i for i in range(150)})
    store.pipelines.link(run_id, ref, dataclasses.replace(ref, key="f" * 64, stage="select", reused=True))
    store.pipelines.log_metrics(run_id, [("accuracy", 0.5, 1)])
    store.pipelines.log_files(run_id, extra)
    store.pipelines.finish(run_id)
    assert other.pipelines.read_text(run_id, "preview.png") == "png"
    where = [other.pipelines.experiment_of(run_id)]
    mine = f"attributes.run_id = '{run_id}'"  # the servers live on
    linked = other.client.search_runs(where, f"dataset.digest = '{ref.digest[:36]}' and {mine}")
    assert [item.info.run_id for item in linked] == [run_id]
    assert linked[0].data.tags[f"cudd.stage.synthesize.{KEY[:16]}"] == ref.run_id

    # withdrawn, it is computed afresh
    store.invalidate(ref, "by hand")
    assert other.lookup(KEY) is None
    again = other.commit(KEY, "synthesize", RECORD)
    assert again.run_id != ref.run_id and not again.reused and store.lookup(KEY) is not None


@pytest.mark.parametrize("edit", [lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: None])
def test_damage_is_found_and_mended(machines: Machines, edit: Callable[[bytes], bytes | None]) -> None:
    counter = list[int]()

    def compute(work: Path) -> Record:
        counter.append(1)
        return RECORD

    def stage(machine: str) -> Ref:
        return cached_stage(machines(machine), stage="x", version=1, config={}, inputs={}, compute=compute)

    ref = stage("a")
    change(machines("a"), ref, machines.s3, edit)
    with pytest.raises(ArtifactDamaged, match=f"{ref.run_id}.*record.json"):
        machines("b").fetch(ref)
    again = stage("c")
    assert not again.reused and len(counter) == 2 and again.run_id != ref.run_id
    assert stage("d") == dataclasses.replace(again, reused=True)


def test_writers_that_meet_agree(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "SETTLE_SECONDS", 2.0)
    barrier, refs, errors = threading.Barrier(3), list[Ref](), list[BaseException]()
    upload = Artifacts.upload

    def together(self: Artifacts, ref: Ref, folder: Path) -> None:
        upload(self, ref, folder)
        barrier.wait(60)

    monkeypatch.setattr(Artifacts, "upload", together)

    def write(machine: str) -> None:
        try:
            refs.append(machines(machine).commit(KEY, "x", RECORD))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(machine,)) for machine in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len({ref.run_id for ref in refs}) == 1 and sorted(ref.reused for ref in refs) == [False, True, True]
    assert statuses(machines("d").connect()) == ["FINISHED", "KILLED", "KILLED"]


def test_what_is_wrong_with_s3_is_said_at_the_start(
    s3: S3, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = shutil.copy(template, tmp_path / "mlflow.db")

    def connect(root: str) -> None:
        forget_clients()
        Store(f"sqlite:///{database}", tmp_path / uuid.uuid4().hex / "cache", root, uuid.uuid4().hex).connect()

    connect(f"{s3.uri}/fine")
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x.*bucket does not exist"):
        connect("s3://no-such-bucket/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"s3://cudd/x.*signature"):
        connect(f"{s3.uri}/x")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"s3://cudd/x.*Could not connect.*127\.0\.0\.1:9"):
        connect(f"{s3.uri}/x")


def test_a_wrong_bucket_is_corrected_by_its_address_alone(tracking_server: str, s3: S3, tmp_path: Path) -> None:
    # MLflow keeps an experiment where it was made to be, so none may be made at an address that does not work.
    name = uuid.uuid4().hex

    def open_at(root: str) -> str:
        store = Store(tracking_server, tmp_path / "cache", root, name)
        store.connect()
        return str(store.client.get_experiment_by_name(name).artifact_location)

    with pytest.raises(StoreError, match=r"no-such-bucket.*does not exist.*CUDD_ARTIFACT_ROOT"):
        open_at("s3://no-such-bucket/x")
    assert open_at(f"{s3.uri}/x") == f"{s3.uri}/x/{name}"


def test_passwords_stay_out_of_messages(
    postgres: Callable[[str], str], s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = postgres("mlflow")
    password = uri.split(":")[2].split("@")[0]
    store = Store(uri, tmp_path / "cache", f"{s3.uri}/direct", uuid.uuid4().hex)
    with pytest.raises(StoreError) as caught:
        store.reference("0" * 32)
    with pytest.raises(StoreError, match="cannot be opened") as refused:
        Store(uri.replace(password, "wrong"), tmp_path / "other").connect()
    for text in (str(caught.value), str(refused.value), caplog.text):
        assert password not in text and s3.secret_key not in text and "wrong@" not in text
