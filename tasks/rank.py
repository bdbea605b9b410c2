"""One process of a training that several share: `python -m tasks.rank JOB.json RANK`, started by `tasks.data_parallel`.

Its standard input carries nothing, but is connected to the process that started it: when it closes, that process is
gone, and this one exits too. On standard output it reports progress and errors, one line of JSON each.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cudd_core.codec import read_record, write_record
from cudd_core.compute.ranks import Ranks
from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.configuration import Configuration
from cudd_core.errors import CuddError
from cudd_core.progress import silent
from cudd_core.records import Shard, SyntheticSet
from tasks.trainings import SET, Read, SetTraining, Training

RECORD = "record"
"""Subfolder of the job's folder in which the first process leaves the network."""

_TELL_SECONDS = 0.5


class Job(Configuration):
    """A training and what its processes need.

    `devices`: each process's device, by rank. `inputs`: name → folders of records. `folder`: where the processes meet,
    and where the first one leaves the network.
    """

    training: Training
    inputs: dict[str, tuple[Path, ...]]
    compute: ComputeConfig
    devices: tuple[int, ...]
    checkpoints: Path
    folder: Path


def reading(job: Job) -> Read:
    """Return a function that reads the inputs of a job."""

    def read(name: str, kind: Any) -> list[Any]:
        if name == SET:
            assert isinstance(job.training, SetTraining)
            return [SyntheticSet.assemble_emptying(read("shards", Shard), job.training.class_names)]
        records = [read_record(folder, verified=True) for folder in job.inputs.get(name, ())]
        assert all(isinstance(record, kind) for record in records)
        return records

    return read


def perform(job: Job, rank: int, tell: Callable[[Mapping[str, object]], None]) -> None:
    """Take part in the training as process number `rank`."""
    told = time.monotonic()

    def progress(done: float, total: int, metrics: Mapping[str, float]) -> None:
        nonlocal told
        # A GPU takes too many steps to report each one.
        if metrics or time.monotonic() - told >= _TELL_SECONDS:
            told = time.monotonic()
            tell({"done": done, "total": total, "metrics": dict(metrics)})

    size = len(job.devices)
    runtime = Runtime(job.compute, job.devices[rank], ranks=Ranks(rank, size))
    _connect(runtime, job.folder / "meeting")
    network = job.training.perform(reading(job), runtime, job.checkpoints, progress if rank == 0 else silent)
    if rank == 0:
        write_record(network, job.folder / RECORD)


def _connect(runtime: Runtime, meeting: Path) -> None:
    """Join the other processes, all on this machine, through a file that they write their addresses to."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(name, "lo")  # neither the network nor a host name that resolves is needed
    cuda = runtime.device.type == "cuda"
    if cuda:
        torch.cuda.set_device(runtime.device)
    torch.distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{meeting}",
        rank=runtime.ranks.rank,
        world_size=runtime.ranks.size,
    )


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)  # even while waiting for a process that will not answer


def main(job: Path, rank: int) -> int:
    """Perform one process's share of a job file; return the exit status."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Anything else that is printed goes to the log: standard output is for reports to the parent only.
    line = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(news: Mapping[str, object]) -> None:
        line.write(json.dumps(news) + "\n")

    try:
        perform(Job.model_validate_json(job.read_bytes()), rank, tell)
    except Exception as error:
        # The time on the machine's common clock: the first failure makes the others fail too, as they lose connection.
        at = time.monotonic()
        tell({"error": type(error).__name__, "text": str(error), "ours": isinstance(error, CuddError), "at": at})
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    status = main(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    # Exit without closing connections: that can wait for the other processes, which may be gone.
    os._exit(status)
