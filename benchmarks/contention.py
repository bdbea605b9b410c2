"""Processes that ask for the same keys at the same time: how often each was computed, and whether all agree.

    python benchmarks/contention.py --machines 1 8            8 processes, on SQLite: first one machine, then eight
    python benchmarks/contention.py --database postgres       on PostgreSQL, started for this

Machines are homes with locks of their own that share a store. All processes make the database together, ask for a key
at the same moment, and those that compute it commit at the same moment. Exit code 1 unless every key ends with one
FINISHED run, which all were given, and each machine computed it once at most.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.servers import postgres_server
from cudd_core.records import Record, Verdicts
from tasks import store as store_module
from tasks.caching import cached_stage
from tasks.store import Store

EXPERIMENT = "contention"
SECONDS = 300.0
COMPUTE_SECONDS = 0.3


@dataclass(frozen=True)
class Answer:
    """What one process got for one key."""

    process: int
    number: int
    key: str
    run_id: str
    computed: bool
    seconds: float


@dataclass(frozen=True)
class Result:
    """`computed`, `finished`, `given`: per key, how often it was computed, FINISHED runs, different runs given out."""

    answers: tuple[Answer, ...]
    computed: tuple[int, ...]
    finished: tuple[int, ...]
    given: tuple[int, ...]
    running: int

    def broken(self, machines: int) -> list[str]:
        """What does not hold."""
        problems = []
        if max(self.computed) > machines:
            problems.append(f"a key was computed {max(self.computed)} times on {machines} machines")
        if set(self.finished) != {1}:
            problems.append(f"FINISHED runs per key: {self.finished}")
        if set(self.given) != {1}:
            problems.append(f"different runs given out per key: {self.given}")
        if self.running:
            problems.append(f"{self.running} runs left RUNNING")
        return problems


def stores(uri: str, folder: Path, machines: int) -> list[Store]:
    """One store a machine, all on one database and one artifact root."""
    root = str(folder / "artifacts")
    return [Store(uri, folder / f"machine-{i}" / "cache", root, EXPERIMENT) for i in range(machines)]


def ask(process: int, store: Store, keys: int, asked: Any, ready: Any, results: Any, settle: float) -> None:
    """One process: ask for every key together with the others; wait for other machines before committing."""
    torch.set_num_threads(1)
    store_module.SETTLE_SECONDS = settle
    store.connect()
    for number in range(keys):
        made = list[int]()

        def compute(work: Path, number: int = number, made: list[int] = made) -> Record:
            made.append(1)
            time.sleep(COMPUTE_SECONDS)
            # A machine that found the key stored does not come; nobody waits long for it.
            with contextlib.suppress(threading.BrokenBarrierError):
                ready.wait(SECONDS)
            return Verdicts(torch.arange(number + 1), torch.zeros(number + 1, dtype=torch.int32))

        asked.wait(SECONDS)
        started = time.monotonic()
        ref = cached_stage(store, stage="asked", version=1, config={"n": number}, inputs={}, compute=compute)
        store.fetch(ref)
        results.put(Answer(process, number, ref.key, ref.run_id, bool(made), time.monotonic() - started))


def run(uri: str, folder: Path, processes: int, machines: int, keys: int, settle: float) -> Result:
    """Let `processes` on `machines` ask for `keys` keys, and look at the store afterwards.

    Raises:
        RuntimeError: a process died.
    """
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401

    # This process imports everything and connects to nothing, so that it can be forked.
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    asked, ready = context.Barrier(processes), context.Barrier(machines)
    shared = stores(uri, folder, machines)
    members = [
        context.Process(target=ask, args=(i, shared[i % machines], keys, asked, ready, results, settle))
        for i in range(processes)
    ]
    for member in members:
        member.start()
    try:
        answers = list[Answer]()
        while len(answers) < processes * keys:
            if any(member.exitcode for member in members):
                raise RuntimeError(f"processes ended with {[member.exitcode for member in members]}")
            with contextlib.suppress(Exception):
                answers.append(results.get(timeout=5))
        for member in members:
            member.join()
    finally:
        for member in members:
            if member.is_alive():
                member.terminate()
    # Not here: what this process opens, the next ones that it forks would share.
    names = [next(a.key for a in answers if a.number == number) for number in range(keys)]
    looker = context.Process(target=_look, args=(shared[0], names, results))
    looker.start()
    finished, running = results.get(timeout=SECONDS)
    looker.join()
    return Result(
        answers=tuple(answers),
        computed=tuple(sum(a.computed for a in answers if a.key == key) for key in names),
        finished=finished,
        given=tuple(len({a.run_id for a in answers if a.key == key}) for key in names),
        running=running,
    )


def _look(store: Store, keys: list[str], results: Any) -> None:
    store.connect()
    found = {
        status: [sum(run.info.status == status for run in store.runs(key)) for key in keys]
        for status in ("FINISHED", "RUNNING")
    }
    results.put((tuple(found["FINISHED"]), sum(found["RUNNING"])))


@contextlib.contextmanager
def _database(folder: Path, kind: str) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'mlflow.db'}"
        return
    with postgres_server() as uri:
        yield uri("mlflow")


def main() -> int:
    """Run it and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--keys", type=int, default=10)
    parser.add_argument("--settle", type=float, default=store_module.SETTLE_SECONDS, help="seconds, see tasks/store.py")
    parser.add_argument("--database", choices=("sqlite", "postgres"), nargs="+", default=["sqlite"])
    options = parser.parse_args()
    print(
        "| database | processes on machines | keys | computed | FINISHED | given out | left RUNNING | seconds a key |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    problems = list[str]()
    for kind in options.database:
        for machines in options.machines:
            with tempfile.TemporaryDirectory(prefix="cudd-contention-") as name, _database(Path(name), kind) as uri:
                result = run(uri, Path(name), options.processes, machines, options.keys, options.settle)
            problems += [f"{kind}, {machines} machines: {problem}" for problem in result.broken(machines)]
            seconds = [answer.seconds for answer in result.answers]
            counts = (options.keys, sum(result.computed), sum(result.finished), sum(result.given), result.running)
            print(
                f"| {kind} | {options.processes} on {machines} | {' | '.join(map(str, counts))} "
                f"| {statistics.median(seconds):.1f} (most {max(seconds):.1f}) |",
                flush=True,
            )
    print("\n".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
