"""Fault campaign: hundreds of injected faults between a store and its servers, and what came of each.

    python benchmarks/store_faults.py                      328 faults with S3, 60 with a tracking server
    python benchmarks/store_faults.py --s3 40 --server 0   fewer
    python benchmarks/store_faults.py --json FILE          every fault with its outcome and seconds

Real servers (rclone's S3, MLflow) on loopback behind a proxy that does the harm; small records through `cached_stage`.
What happens is drawn from --seed; only times vary. After every fault:

- whatever was returned is, value by value, what the stage computes;
- an output that was FINISHED is found again and not computed again, unless its stored bytes were harmed;
- an error names the object, and the same call succeeds once the fault is over;
- one run of the key is FINISHED, and its stored files match their manifest;
- the outcome is the one that the kind of fault calls for: what can be repeated was repeated.

Exit code 1 if any of this does not hold. The waits between requests are a tenth of the real ones, so that a fault that
lasts is told from one that passes within seconds. Faults of full disks need the right to mount a tmpfs.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from benchmarks.arguments import arguments
from benchmarks.fault_kinds import FaultKind, World, mount_small, s3_kinds, server_kinds
from benchmarks.faulty_proxy import FaultyProxy
from benchmarks.servers import BUCKET, forget_clients, mlflow_server, s3_server
from cudd_core.codec import content_digest
from cudd_core.errors import ArtifactDamaged, CuddError
from cudd_core.manifest import verify_folder
from cudd_core.records import Record, Shard
from tasks import mlflow_calls, store_settings
from tasks.caching import cached_stage
from tasks.mlflow_connection import make_database
from tasks.refs import Ref
from tasks.store import Store

EXPERIMENT = "faults"
SCALE = 0.1
STALL_SECONDS = 3
STRIDE = 13
"""Shares no factor with the number of kinds."""
PLAIN = 3
"""Calls without a fault per worker and phase."""
# A run, an address, or a path: what an error must name.
_NAMED = re.compile(r"\b[0-9a-f]{32}\b|s3://\S+|https?://\S+|mlflow-artifacts:/\S+|Folder /\S+")


@dataclass(frozen=True)
class Report:
    """What came of one fault. `problems`: the invariants that it broke."""

    target: str
    kind: str
    phase: str
    number: int
    outcome: str
    expected: str
    seconds: float
    error: str
    problems: tuple[str, ...]


class Campaign:
    """One worker's servers, proxy and stores, all its own."""

    def __init__(self, folder: Path, world: World, uri: str, artifacts: str | None) -> None:
        self.folder, self.world, self.uri, self.artifacts = folder, world, uri, artifacts
        self.computed = 0
        self._homes = 0

    def store(self, small: bool = False) -> Store:
        """A store on a machine that has nothing cached."""
        self._homes += 1
        home = (self.world.small if small and self.world.small is not None else self.folder) / f"home-{self._homes}"
        return Store(self.uri, home / "cache", self.artifacts, EXPERIMENT)

    def call(self, store: Store, number: int) -> Ref:
        """The stage under test: returns its output's reference, after comparing every value."""

        def compute(work: Path) -> Record:
            self.computed += 1
            return record(number)

        ref = cached_stage(store, stage="fault", version=1, config={"number": number}, inputs={}, compute=compute)
        if content_digest(store.fetch(ref)) != content_digest(record(number)):
            raise AssertionError("a wrong value was returned")
        return ref

    def inject(self, kind: FaultKind, number: int, rng: random.Random, target: str) -> Report:
        """Make one fault, and look at everything afterwards."""
        problems, error, outcome = list[str](), "", "recovered"
        first = None
        if kind.phase == "reuse":
            first = self.call(self.store(), number)
            self.world.finished = self._objects(first.run_id).relative_to(self.world.s3.folder / BUCKET).as_posix()
        store = self.store(kind.full)
        if kind.connected or (kind.connected is None and rng.random() < 0.5):
            store.connect()
        before, started, ref = self.computed, time.monotonic(), None
        with kind.act(self.world, rng):
            try:
                ref = self.call(store, number)
            except CuddError as caught:
                outcome, error = "error", str(caught)
                if not _NAMED.search(error):
                    problems.append("the error names no object")
            except Exception as caught:
                outcome, error = "error", f"{type(caught).__name__}: {caught}"
                problems.append(f"not our error: {traceback.format_exc()[-1500:]}")
            met = self.world.proxy.met
        if not met:
            problems.append("the fault was not met")
        if ref is not None and self.computed > before + (kind.phase == "store"):
            outcome = "recomputed"
        problems += self._afterwards(kind, number, first, before)
        seconds = time.monotonic() - started
        if outcome != kind.outcome:
            problems.append(f"{outcome} where {kind.outcome} is due")
        shutil.rmtree(store.cache_folder.parent, ignore_errors=True)
        names = (target, kind.name, kind.phase, number, outcome, kind.outcome)
        return Report(*names, seconds, error[:2000], tuple(problems))

    def _afterwards(self, kind: FaultKind, number: int, first: Ref | None, before: int) -> Iterator[str]:
        """The fault is over: the same call must succeed, reuse what was finished, and leave one whole run."""
        store = self.store()
        try:
            last = self.call(store, number)
        except Exception:
            yield f"the fault is over, and yet: {traceback.format_exc()[-1500:]}"
            return
        if first is not None and not kind.stored and (last.run_id != first.run_id or self.computed != before):
            yield "an output that was finished was lost"
        found = [run for run in store.runs(last.key) if run.info.status == "FINISHED"]
        if [run.info.run_id for run in found] != [last.run_id]:
            yield f"{len(found)} FINISHED runs"
        for run in found:
            try:
                verify_folder(self._objects(run.info.run_id), run.data.tags["cudd.digest"])
            except (ArtifactDamaged, KeyError) as error:
                yield f"a FINISHED run is damaged: {error}"
        shutil.rmtree(store.cache_folder.parent, ignore_errors=True)

    def _objects(self, run_id: str) -> Path:
        (folder,) = self.world.s3.folder.glob(f"{BUCKET}/**/{run_id}/artifacts")
        return folder


def record(number: int) -> Record:
    """A record of some 20 KB in three files, other bytes for every number."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(6)
    return Shard(images, labels, labels // 2, labels + number, 1)


def worker(target: str, folder: Path, template: Path, jobs: list[int], seed: int, results: Any) -> None:
    """Run some of the faults with servers of its own; put reports and plain calls' seconds into `results`."""
    # Ended by its parent, it ends its servers too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(1)
    logging.getLogger("cudd").setLevel(logging.CRITICAL)
    try:
        with _campaign(target, folder, template) as campaign:
            kinds = (s3_kinds if target == "s3" else server_kinds)(campaign.world)
            for number in range(PLAIN):
                for phase in ("store", "reuse"):
                    started = time.monotonic()
                    campaign.call(campaign.store().connect(), -1 - number)
                    campaign.call(campaign.store(), -1 - number)
                    results.put((phase, time.monotonic() - started))
            for number in jobs:
                kind = kinds[number % len(kinds)]
                results.put(campaign.inject(kind, number, random.Random(f"{seed}/{target}/{number}"), target))
    except Exception:
        results.put(traceback.format_exc())


@contextlib.contextmanager
def _campaign(target: str, folder: Path, template: Path) -> Iterator[Campaign]:
    folder.mkdir()
    shutil.copy(template, folder / "mlflow.db")
    # Mounts in a namespace of this process vanish with it, however it ends.
    private = ctypes.CDLL(None).unshare(0x00020000) == 0
    private = private and subprocess.run(["mount", "--make-rprivate", "/"], capture_output=True).returncode == 0
    roomy = private and mount_small(folder / "s3", 48)
    small = folder / "small" if roomy and mount_small(folder / "small", 2) else None
    database = f"sqlite:///{folder / 'mlflow.db'}"
    with contextlib.ExitStack() as stack:
        s3 = stack.enter_context(s3_server(folder / "s3"))
        if target == "s3":
            proxy = stack.enter_context(FaultyProxy(_port(s3.endpoint)))
            uri, artifacts = database, f"{s3.uri}/store"
            os.environ |= s3.environment(proxy.url)
        else:
            server = stack.enter_context(mlflow_server(database, s3.uri, folder / "mlflow.log", s3.environment()))
            proxy = stack.enter_context(FaultyProxy(_port(server)))
            uri, artifacts = proxy.url, None
        yield Campaign(folder, World(s3, proxy, small, _reset_clients), uri, artifacts)


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def _reset_clients() -> None:
    forget_clients()
    store_settings.configure_s3()


def run(
    target: str, faults: int, workers: int, seed: int, show: Callable[[str], None]
) -> tuple[list[Report], dict[str, float]]:
    """Run `faults` faults on one target; return the reports, and what the same calls take without a fault.

    Raises:
        RuntimeError: a worker died.
    """
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    reports, plain = list[Report](), dict[str, list[float]](store=[], reuse=[])
    with tempfile.TemporaryDirectory(prefix="cudd-faults-") as name:
        template = Path(name) / "template.db"
        make_database(template)
        # Of few faults no two are of one kind; of many all kinds are met alike.
        order = [number * STRIDE for number in range(faults)]
        processes = [
            context.Process(
                target=worker, args=(target, Path(name) / f"worker-{i}", template, order[i::workers], seed, results)
            )
            for i in range(workers)
        ]
        for process in processes:
            process.start()
        try:
            while len(reports) < faults:
                item = results.get(timeout=600)
                if isinstance(item, str):
                    raise RuntimeError(f"a worker died:\n{item}")
                if isinstance(item, tuple):
                    plain[item[0]].append(item[1])
                    continue
                reports.append(item)
                for problem in item.problems:
                    show(f"{target} {item.kind} ({item.phase}) #{item.number}: {problem}\n    {item.error[:600]}")
                if len(reports) % 50 == 0:
                    show(f"{target}: {len(reports)} of {faults}")
            for process in processes:
                process.join()
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
                process.join()
    costs = {phase: statistics.median(seconds) for phase, seconds in plain.items()}
    return sorted(reports, key=lambda report: report.number), costs


def table(reports: Iterable[Report], plain: dict[str, float]) -> list[str]:
    """Kind × outcome, with the median and largest seconds lost."""
    groups: dict[tuple[str, str], list[Report]] = defaultdict(list)
    for report in reports:
        groups[report.phase, report.kind].append(report)
    lines = ["| fault | on the way of | n | recovered | clear error | recomputed | seconds lost, median (most) |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (phase, kind), members in sorted(groups.items()):
        count = [sum(m.outcome == outcome for m in members) for outcome in ("recovered", "error", "recomputed")]
        lost = [max(m.seconds - plain[phase], 0.0) for m in members]
        way = "a new output" if phase == "store" else "a finished one"
        numbers = " | ".join(str(number) for number in (len(members), *count))
        lines.append(f"| {kind} | {way} | {numbers} | {statistics.median(lost):.1f} ({max(lost):.1f}) |")
    return lines


def main() -> int:
    """Run the campaign and print its tables."""
    parser = arguments(__doc__, "seed")
    parser.add_argument("--s3", type=int, default=328, metavar="N", help="faults between the store and S3")
    parser.add_argument("--server", type=int, default=60, metavar="N", help="faults before a tracking server")
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    prepare()
    everything, started = list[Report](), time.monotonic()
    for target, faults, workers in (("s3", options.s3, options.workers), ("server", options.server, 2)):
        if faults:
            reports, plain = run(target, faults, min(workers, options.workers), options.seed, print)
            everything += reports
            calls = ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in plain.items())
            print(f"\n{target}: {len(reports)} faults; the same calls without one: {calls}\n")
            print("\n".join(table(reports, plain)), flush=True)
    broken = sum(bool(report.problems) for report in everything)
    print(
        f"\n{len(everything)} faults, seed {options.seed}, {time.monotonic() - started:.0f} s; {broken} broke something"
    )
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(report) for report in everything], indent=1) + "\n")
    return 1 if broken else 0


def prepare() -> None:
    """Shorten the waits, and import what workers need, before they are forked."""
    import mlflow.artifacts
    import mlflow.store.artifact.s3_artifact_repo
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    mlflow_calls.OUTAGE_WAITS = tuple(seconds * SCALE for seconds in mlflow_calls.OUTAGE_WAITS)
    os.environ |= {
        **{"MLFLOW_HTTP_REQUEST_TIMEOUT": str(STALL_SECONDS), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"},
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0.1",
    }
    for name in ("MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT"):
        os.environ.pop(name, None)


if __name__ == "__main__":
    sys.exit(main())
