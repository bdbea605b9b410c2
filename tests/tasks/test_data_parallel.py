"""One network trained by several processes: the same network, and nothing that outlives its training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cudd_core.codec import write_record
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.errors import Cancelled, CuddError, ModelError, ResourceError
from cudd_core.progress import CONTINUED, silent
from cudd_core.records import NetworkRecord, NetworkSpec, Shard, SoftLabels
from cudd_core.seeding import torch_rng
from cudd_core.stages.relabel import RelabelConfig
from cudd_core.stages.train_network import EvaluationConfig
from cudd_core.teacher import TeacherConfig
from cudd_core.training import TrainingConfig
from tasks import data_parallel
from tasks.context import DataRef, StageContext
from tasks.data_parallel import train_together
from tasks.progress import stop_requested
from tasks.rank import Job, reading
from tasks.squeeze import squeeze
from tasks.store import Store
from tasks.trainings import NetworkTraining, TeacherTraining

# A process of a training takes seconds to start: CUDD_TEST_SERVERS=1 runs all.
SLOW = pytest.mark.skipif(
    not os.environ.get("CUDD_TEST_SERVERS"), reason="starts many processes; CUDD_TEST_SERVERS=1 runs it"
)
IMAGES, CLASSES, SIZE, EPOCHS = 17, 4, 8, 4
NAMES = ("amber", "blue", "cyan", "dove")
DATA = DataConfig(source="digits", channels=1, image_size=8, limit_per_class=5)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """The processes that trainings of this test start."""
    processes: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(data_parallel.subprocess, "Popen", Noted)
    return processes


def network_job(folder: Path, processes: int) -> Job:
    """Soft labels, CutMix, and a last batch that has fewer images than three processes."""
    noise = torch_rng(0, "images")
    labels = torch.arange(IMAGES) % CLASSES
    shard = Shard(
        images=torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=noise).to(torch.uint8),
        labels=labels,
        slices=torch.arange(IMAGES) // CLASSES,
        sources=torch.arange(IMAGES),
        curriculum=1,
    )
    spec = NetworkSpec("convnet2-w8", CLASSES, 3, SIZE, (0.5,) * 3, (0.25,) * 3, NAMES)
    logits = 3 * torch.randn(EPOCHS, IMAGES, CLASSES, generator=noise)
    inputs = {
        "shards": shard,
        "labels": SoftLabels(logits.half(), 0),
        "teacher": NetworkRecord(spec, {"unread": torch.zeros(1)}),
    }
    for name, record in inputs.items():
        write_record(record, folder / name)
    training = TrainingConfig(optimizer="sgd", learning_rate=0.05, epochs=EPOCHS, batch_size=5, ema_decay=0.5)
    (folder / "job").mkdir()
    return Job(
        training=NetworkTraining(
            class_names=NAMES,
            replay=RelabelConfig(),
            seed=0,
            arch="convnet2-w8",
            number=0,
            config=EvaluationConfig(training=training, temperature=2.0, hard_label_weight=0.5, checkpoint_every=1),
        ),
        inputs={name: (folder / name,) for name in inputs},
        compute=ComputeConfig(data_parallel=processes),
        devices=(0,) * processes,
        checkpoints=folder / "checkpoint",
        folder=folder / "job",
    )


def alone(job: Job, checkpoints: Path, progress: Any = silent) -> NetworkRecord:
    runtime = Runtime(ComputeConfig())
    return job.training.perform(reading(job), runtime, checkpoints, progress)


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].double(), other[name].double(), rtol=1e-4, atol=1e-5) for name in one
    )


def stop_after(epoch: int) -> Any:
    def progress(done: float, total: int, metrics: Mapping[str, float]) -> None:
        if done == epoch:
            raise Cancelled("stop")

    return progress


@pytest.mark.usefixtures("prompt_checkpoints")
def test_processes_go_on_where_one_stopped_to_the_network_that_one_trains(
    started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    job = network_job(tmp_path, 3)
    undisturbed = alone(job, tmp_path / "elsewhere")
    with pytest.raises(Cancelled):
        alone(job, job.checkpoints, stop_after(2))
    rows: list[tuple[float, int, bool]] = []
    together = train_together(job, lambda done, total, metrics: rows.append((done, total, CONTINUED in metrics)))
    epochs = [row for row in rows if row[0] == int(row[0])]
    assert epochs == [(2, EPOCHS, True), (3, EPOCHS, False), (4, EPOCHS, False)]
    assert close(together.state, undisturbed.state) and together.spec == undisturbed.spec
    losses = [row["loss"] for row in undisturbed.history]
    assert [row["loss"] for row in together.history] == pytest.approx(losses, rel=1e-5)
    assert len(started) == 3 and all(process.poll() is not None for process in started)


def test_a_killed_process_is_an_error_and_leaves_no_other(
    started: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listen = data_parallel._listen

    def kill_one(rank: int, *rest: Any) -> None:
        if rank == 1:
            started[rank].kill()
        listen(rank, *rest)

    monkeypatch.setattr(data_parallel, "_listen", kill_one)
    with pytest.raises(ResourceError, match=r"Process 2 of 2 .* was killed \(SIGKILL\).*data_parallel"):
        train_together(network_job(tmp_path, 2), silent)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


def test_a_stop_ends_all_at_once(started: list[subprocess.Popen[bytes]], tmp_path: Path) -> None:
    stop_requested.set()
    with pytest.raises(Cancelled, match="2 processes"):
        train_together(network_job(tmp_path, 2), silent)
    assert len(started) == 2 and all(process.poll() is not None for process in started)


# ---- which of several failures is told ------------------------------------------------------------------------------


def said(at: float, error: str = "RuntimeError", text: str = "lost connection", ours: bool = False) -> dict[str, Any]:
    return {"error": error, "text": text, "ours": ours, "at": at}


def failure(folder: Path, codes: dict[int, int], words: dict[int, dict[str, Any]]) -> CuddError:
    return data_parallel._failure(data_parallel._Outcome(codes, words), 3, folder)


def test_the_first_error_is_told_whoever_is_heard_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for rank in range(3):
        (tmp_path / f"rank-{rank}.log").write_text(f"{'x' * 5000}the log's end of {rank}")
    words = {0: said(9.5), 2: said(9.0, "ModelError", "too small", ours=True), 1: said(10.25)}
    found = failure(tmp_path, {0: 1, 1: 1, 2: 1}, words)
    assert type(found) is ModelError and str(found) == "too small"
    found = failure(tmp_path, {0: 1}, {0: said(9.5), 1: said(8.0, "KeyError", "'x'")})
    assert type(found) is CuddError and str(found) == "Process 2 of 3 of a training failed: KeyError: 'x'"
    assert "the log's end of 1" in caplog.text and len(caplog.text) < 3000
    # Another library's error is not ours because it has the name of one, nor is one known that another module defines.
    for strange in (said(1.0, "DataError", "theirs"), said(1.0, "StagesFailed", "theirs", ours=True)):
        assert type(failure(tmp_path, {0: 0, 1: 1}, {1: strange})) is CuddError


def test_what_ended_without_a_word_is_told_by_its_status_and_a_killed_one_before_all(tmp_path: Path) -> None:
    (tmp_path / "rank-1.log").touch()
    assert str(failure(tmp_path, {0: 0, 1: 7}, {})).endswith("Process 2 of 3 of a training failed: exit status 7")
    found = failure(tmp_path, {0: 1, 2: -signal.SIGKILL}, {0: said(1.0)})
    assert type(found) is ResourceError and "Process 3 of 3 of a training was killed (SIGKILL)" in str(found)


def test_all_are_heard_out_for_a_moment_after_one_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is heard first may only have lost its connection to the one that failed."""
    (tmp_path / "rank-0.log").touch()
    monkeypatch.setattr(data_parallel, "_POLL_SECONDS", 0.02)

    def follow(*commands: str) -> list[tuple[float, int, Mapping[str, float]]]:
        heard: list[tuple[float, int, Mapping[str, float]]] = []
        processes = [subprocess.Popen(["sh", "-c", each], stdout=subprocess.PIPE) for each in commands]
        try:
            data_parallel._follow(processes, tmp_path, lambda *news: heard.append(news))
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return heard

    def tell(news: Mapping[str, Any]) -> str:
        return f"echo '{json.dumps(news)}'"

    late = said(1.0, "ModelError", "the cause", ours=True)
    with pytest.raises(ModelError, match="the cause"):
        follow(f"{tell(said(2.0))}; exit 1", f"sleep 0.2; {tell(late)}; exit 1")
    monkeypatch.setattr(data_parallel, "_LAST_WORDS_SECONDS", 0.1)
    with pytest.raises(CuddError, match="Process 1 of 2 of a training failed: RuntimeError: lost connection"):
        follow(f"{tell(said(2.0))}; exit 1", "exec sleep 60")
    with pytest.raises(CuddError, match="lost connection"):
        follow(f"{tell(said(2.0))}; exec sleep 60", "exec sleep 60")
    with pytest.raises(CuddError, match="exit status 3"):
        follow("exit 3", "exec sleep 60")
    news = {"done": 1.0, "total": 4, "metrics": {"loss": 0.5}}
    assert follow(f"sleep 0.1; {tell(news)}; sleep 0.1; {tell(news | {'done': 2.0, 'metrics': {}})}", "true") == [
        (1.0, 4, {"loss": 0.5}),
        (2.0, 4, {}),
    ]


# ---- with processes that have begun ---------------------------------------------------------------------------------


def endless(folder: Path) -> Job:
    job = network_job(folder, 2)
    assert isinstance(job.training, NetworkTraining)
    config = job.training.config
    training = config.training.model_copy(update={"epochs": 100_000})
    config = config.model_copy(update={"training": training, "labels": "hard"})
    return job.model_copy(update={"training": job.training.model_copy(update={"config": config})})


@SLOW
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_dies_at_work_is_an_error_not_a_hang(
    rank: int, started: list[subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    def kill(done: float, total: int, metrics: Mapping[str, float]) -> None:
        started[rank].kill()

    with pytest.raises(ResourceError, match=rf"Process {rank + 1} of 2"):
        train_together(endless(tmp_path), kill)
    assert all(process.poll() is not None for process in started)


@SLOW
def test_a_mistake_arrives_as_it_was_raised(tmp_path: Path) -> None:
    job = network_job(tmp_path, 2)
    job = job.model_copy(update={"training": job.training.model_copy(update={"arch": "convnet9"})})
    with pytest.raises(ModelError, match="convnet9 halves its input 9 times"):
        train_together(job, silent)


PARENT = """
import sys
from pathlib import Path
from tasks.data_parallel import train_together
from tasks.rank import Job
train_together(Job.model_validate_json(Path(sys.argv[1]).read_bytes()), lambda *_: print("at work", flush=True))
"""


@SLOW
def test_nobody_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "parent.json"
    file.write_text(endless(tmp_path).model_dump_json())
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(file)], stdout=subprocess.PIPE)
    assert parent.stdout is not None and b"at work" in parent.stdout.readline()
    children = [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
    assert len(children) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}/cmdline").exists() and _is_rank(pid) for pid in children):
        assert time.monotonic() < deadline, "a process outlived its parent"
        time.sleep(0.1)


def _is_rank(pid: int) -> bool:
    try:
        return b"tasks.rank" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@SLOW
def test_the_task_stores_the_same_bytes_each_time_under_a_key_of_its_own(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDD_SLOTS", "2")
    monkeypatch.setattr("tasks.progress.UI_SECONDS", float("inf"))  # no Prefect server to tell
    train, test = open_split(DATA, "train"), open_split(DATA, "test")
    data = DataRef(DATA, train.digest, test.digest, len(train.class_names))
    training = TrainingConfig(optimizer="sgd", learning_rate=0.05, epochs=2, batch_size=15)
    config = TeacherConfig(arch="convnet1-w4", training=training)

    def teacher(processes: int, force: bool = False) -> Any:
        compute = ComputeConfig(data_parallel=processes)
        forced = frozenset({"squeeze"}) if force else frozenset[str]()
        return squeeze.fn(StageContext(store, data, compute, 0, "pipeline", forced), config)

    one, two = teacher(1), teacher(2)
    assert one.data.key != two.data.key and teacher(2).name == "Reused"
    assert teacher(2, force=True).data.digest == two.data.digest
    assert close(store.fetch(two.data).state, store.fetch(one.data).state)  # type: ignore[union-attr]


def test_a_job_is_the_same_after_json(tmp_path: Path) -> None:
    job = network_job(tmp_path, 2)
    assert Job.model_validate_json(job.model_dump_json()) == job
    teacher = TeacherTraining(data=DATA, decoded=tmp_path, config=TeacherConfig(mean=(0.1,), std=(1 / 3,)), seed=3)
    job = job.model_copy(update={"training": teacher})
    assert Job.model_validate_json(job.model_dump_json()) == job
