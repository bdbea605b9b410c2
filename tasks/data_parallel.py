"""Run one training here, or in several processes on this machine that are started, followed and ended.

They are new processes, not forks: a flow has threads, and CUDA does not survive a fork. They receive values as JSON and
records as folders of the store, and return a record too. None outlives this process, however that ends: each of them
exits when its standard input closes.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

from cudd_core import errors
from cudd_core.codec import read_record
from cudd_core.compute.runtime import Runtime
from cudd_core.errors import CuddError, ResourceError
from cudd_core.progress import Progress
from cudd_core.records import NetworkRecord
from tasks.caching import fetch_input_folder
from tasks.context import StageContext
from tasks.progress import check_not_stopped
from tasks.rank import RECORD, Job
from tasks.refs import Ref
from tasks.runners import LOCAL
from tasks.sets import load_set
from tasks.stage import fetch
from tasks.trainings import SET, NetworkTraining, StudentTraining, TeacherTraining

_POLL_SECONDS = 0.5
_LAST_WORDS_SECONDS = 2.0
"""How long the other processes may take to report their own errors once one has failed."""
_LOG_CHARACTERS = 2000
_log = logging.getLogger("cudd.ranks")


def train(
    context: StageContext,
    training: TeacherTraining | StudentTraining | NetworkTraining,
    inputs: Mapping[str, tuple[Ref, ...]],
    runtime: Runtime,
    work: Path,
    progress: Progress,
) -> NetworkRecord:
    """Run `training` on `inputs`, with one process per device in `runtime.indices`, and return the network.

    `work`: a folder for checkpoints, which survives a kill.

    Raises:
        Cancelled: a stop was asked for.
        ResourceError: one of the processes was killed.
        CuddError: one of them failed.
        Whatever the training raises.
    """
    checkpoints = work / "checkpoint"
    training.prepare(progress)
    if len(runtime.indices) == 1:

        def read(name: str, kind: type[Any] | UnionType) -> list[Any]:
            if name == SET:
                return [load_set(context, inputs["shards"])]
            return [fetch(context, ref, kind) for ref in inputs.get(name, ())]

        return training.perform(read, runtime, checkpoints, progress)
    assert context.runner == LOCAL
    folders = {name: tuple(fetch_input_folder(context.store, ref) for ref in refs) for name, refs in inputs.items()}
    with tempfile.TemporaryDirectory(prefix="cudd-ranks-") as folder:
        job = Job(
            training=training,
            inputs=folders,
            compute=runtime.config,
            devices=runtime.indices,
            checkpoints=checkpoints,
            folder=Path(folder),
        )
        return train_together(job, progress)


def train_together(job: Job, progress: Progress) -> NetworkRecord:
    """Return the network that the processes of `job` train; none of them is left running. Raises like `train`."""
    with _started(job) as processes:
        _follow(processes, job.folder, progress)
    record = read_record(job.folder / RECORD)
    assert isinstance(record, NetworkRecord)
    return record


@contextmanager
def _started(job: Job) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the processes of a job; at the end, kill those still running."""
    file = job.folder / "job.json"
    file.write_text(job.model_dump_json(), encoding="utf-8")
    ours = str(Path(__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([ours, *filter(None, [os.environ.get("PYTHONPATH")])])}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(len(job.devices)):
            with _log_file(job.folder, rank).open("wb") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "tasks.rank", str(file), str(rank)],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=log,
                        env=environment,
                        # Signals from a terminal or a worker to this process's group are for this process to handle.
                        start_new_session=True,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@dataclass
class _Outcome:
    """What is known about ended processes: exit codes by rank, and the errors that failed ones reported."""

    codes: dict[int, int] = field(default_factory=dict)
    said: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return bool(self.said) or any(self.codes.values())


def _follow(processes: list[subprocess.Popen[bytes]], folder: Path, progress: Progress) -> None:
    """Pass on progress until all processes have succeeded. Raises if one fails or a stop was asked for."""
    news: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
    for rank, process in enumerate(processes):
        threading.Thread(target=_listen, args=(rank, process, news), daemon=True).start()
    outcome, deadline = _Outcome(), float("inf")
    while len(outcome.codes) < len(processes) and time.monotonic() < deadline:
        check_not_stopped(f"a training by {len(processes)} processes")
        try:
            rank, line = news.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if not line:
            outcome.codes[rank] = processes[rank].wait()
        elif "error" in (message := json.loads(line)):
            outcome.said[rank] = message
        else:
            progress(message["done"], message["total"], message["metrics"])
        if outcome.failed:
            deadline = min(deadline, time.monotonic() + _LAST_WORDS_SECONDS)
    if outcome.failed:
        raise _failure(outcome, len(processes), folder)


def _listen(rank: int, process: subprocess.Popen[bytes], news: queue.SimpleQueue[tuple[int, bytes]]) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            news.put((rank, line))
    news.put((rank, b""))


def _failure(outcome: _Outcome, size: int, folder: Path) -> CuddError:
    """Return the error that made a training fail, rather than one that resulted from it."""
    killed = [(rank, -code) for rank, code in outcome.codes.items() if code < 0]
    if killed:
        rank, number = killed[0]
        return ResourceError(
            f"Process {rank + 1} of {size} of a training was killed ({signal.Signals(number).name}). Usually memory "
            "ran out: lower the training's batch_size or compute.data_parallel. The same command goes on from the "
            "last checkpoint."
        )
    if outcome.said:
        rank, first = min(outcome.said.items(), key=lambda entry: float(entry[1]["at"]))
        kind = getattr(errors, first["error"], None) if first["ours"] else None
        if kind is not None:
            ours: CuddError = kind(first["text"])
            return ours
        reason = f"{first['error']}: {first['text']}"
    else:
        rank = next(rank for rank, code in outcome.codes.items() if code)
        reason = f"exit status {outcome.codes[rank]}"
    tail = _log_file(folder, rank).read_text(encoding="utf-8", errors="replace")[-_LOG_CHARACTERS:]
    _log.error("process %d of %d of a training failed; the end of its log:\n%s", rank + 1, size, tail)
    return CuddError(f"Process {rank + 1} of {size} of a training failed: {reason}")


def _log_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.log"
