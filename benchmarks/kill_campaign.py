"""Kill runs with SIGKILL at random moments, run them again, and prove that nothing is wrong or lost.

    python benchmarks/kill_campaign.py --mode flow --kills 80       the flow's process
    python benchmarks/kill_campaign.py --mode ray --kills 15        Ray workers under a flow
    python benchmarks/kill_campaign.py --mode worker --kills 5      a Prefect worker together with its flow

Half of the kills of mode `flow` come at a random time, half before or after a random request to the store, so that
starts, uploads and commits are hit as often as computing. A run is killed and run again until it ends; then the next
home begins. Asserted of every home: the dataset's digest is that of an undisturbed run, no key has two FINISHED runs,
every FINISHED run's files have their checksums, no attempt and no pipeline run is left RUNNING. Exit code 1 if not.

Linux only. Runs are forked from a process that has imported everything, which saves 15 s of processor time each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.servers import own_prefect

RECIPE = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet2-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 4, batch_size: 64}
schedule: {kind: logarithmic, ipc: 10, step: 5, block_size: 5, slices_per_shard: 5}
synthesis: {iterations: 20, batch_size: 10, jitter: 1}
relabel: {epochs_per_shard: 5}
student: {training: {epochs: 10, batch_size: 16}, checkpoint_every: 2}
evaluation: {training: {epochs: 10, batch_size: 16}, seeds: 1, checkpoint_every: 2}
baselines: [random, selection]
compute: {device: cpu, threads: 1, amp: "off"}
"""
_RUN_SECONDS = 600.0


@dataclass
class Campaign:
    """What happened, over all homes."""

    mode: str
    seed: int
    kills: int = 0
    homes: int = 0
    places: Counter[str] = field(default_factory=Counter)
    lost: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def report(self, undisturbed: float) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "mode": self.mode,
            "seed": self.seed,
            "kills": self.kills,
            "homes": self.homes,
            "kills_by_stage": dict(sorted(self.places.items())),
            "undisturbed_seconds": round(undisturbed, 1),
            "seconds_lost_per_kill": {
                "mean": round(statistics.fmean(self.lost), 1) if self.lost else None,
                "max": round(max(self.lost), 1) if self.lost else None,
            },
            "wrong": self.wrong,
        }


# ---- one run, in a forked child --------------------------------------------------------------------------------------


def run_child(home: Path, runner: str = "local", arm: Callable[[], None] | None = None) -> int:
    """Fork a run of the recipe in `home`; return its pid. It writes its summary and ends with 0, or ends with 1."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(home / "child.log", "ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        os.environ["CUDD_HOME"] = str(home)
        from flows.distill import distill

        if arm is not None:
            arm()
        summary = distill(recipe=str(home / "tiny.yaml"), runner=runner)
        (home / "summary.json").write_text(json.dumps(summary))
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def arm_store(number: int, before: bool) -> Callable[[], None]:
    """Return what makes a child kill itself before or after its `number`-th request to the store."""

    def arm() -> None:
        from tasks.mlflow_calls import Calls

        original, count = Calls.__call__, iter(range(1, 10**9))

        def call(self: Calls, doing: str, function: Callable[[], Any], **how: bool) -> Any:
            mine = next(count) == number
            if mine and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(self, doing, function, **how)
            if mine:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        Calls.__call__ = call  # type: ignore[method-assign]

    return arm


def ended(pid: int, seconds: float) -> int | None:
    """Wait for a child; return its wait status, or None if it still runs after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)


def kill(pid: int) -> None:
    """End a process at once."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


# ---- invariants ------------------------------------------------------------------------------------------------------


def examine(home: Path, digest: str) -> list[str]:
    """Return what is wrong in a home whose run has ended."""
    from cudd_core.errors import ArtifactDamaged
    from cudd_core.manifest import verify_folder
    from tasks.store import Store

    wrong = []
    found = json.loads((home / "summary.json").read_text())["dataset"]["digest"]
    if found != digest:
        wrong.append(f"{home.name}: digest {found[:12]} instead of {digest[:12]}")
    store = Store.from_environment(home).connect()
    store.pipelines.end_dead()
    attempts = store.ledger().attempts
    finished = Counter(attempt.key for attempt in attempts if attempt.ref is not None)
    wrong += [f"{home.name}: key {key[:12]} has {n} FINISHED runs" for key, n in finished.items() if n > 1]
    for attempt in attempts:
        if attempt.ref is not None:
            try:
                verify_folder(store.fetch_folder(attempt.ref), attempt.ref.digest)
            except ArtifactDamaged as error:
                wrong.append(f"{home.name}: {error}")
        if attempt.status == "RUNNING":
            wrong.append(f"{home.name}: attempt {attempt.title} is left RUNNING")
    for run in store.pipelines.going_on():
        wrong.append(f"{home.name}: pipeline run {run.info.run_name} is left RUNNING")
    return wrong


def going_on(home: Path) -> str:
    """Name the stage that was being computed, from the log's last line that tells it."""
    lines = (home / "child.log").read_text(errors="replace").splitlines() if (home / "child.log").exists() else []
    for line in reversed(lines):
        if ": started" in line:
            return line.split(": started")[0].split("| ")[-1].split(" - ")[-1].split()[0]
        if "=== begin" in line:
            break
    return "between"


def new_home(parent: Path, number: int, template: Path) -> Path:
    """Make a home with the recipe and an MLflow database, a copy of one made before."""
    home = parent / f"home-{number}"
    home.mkdir()
    (home / "tiny.yaml").write_text(RECIPE)
    (home / "mlflow.db").write_bytes(template.read_bytes())
    return home


# ---- modes -----------------------------------------------------------------------------------------------------------


def kill_flow(home: Path, draw: random.Random, undisturbed: float, campaign: Campaign) -> None:
    """Kill a run's process again and again until one gets through."""
    spent, kills = 0.0, 0
    while True:
        with (home / "child.log").open("a") as log:
            log.write("=== begin\n")
        at_store = draw.random() < 0.5
        # Later requests than a resumed run makes do not come: then it ends by itself, and so does this home.
        arm = arm_store(1 + int(draw.random() ** 2 * 150), draw.random() < 0.5) if at_store else None
        began = time.monotonic()
        pid = run_child(home, arm=arm)
        status = ended(pid, _RUN_SECONDS if at_store else draw.uniform(0.05, 0.6 * undisturbed))
        if status is None:
            kill(pid)
            _, status = os.waitpid(pid, 0)
        spent += time.monotonic() - began
        if os.WIFSIGNALED(status):
            kills += 1
            campaign.kills += 1
            where = ("store request, " if at_store else "") + going_on(home)
            campaign.places[where] += 1
            print(f"  kill {campaign.kills} after {time.monotonic() - began:.1f} s: {where}", flush=True)
        elif os.WEXITSTATUS(status) == 0:
            break
        else:
            campaign.wrong.append(f"{home.name}: a run failed, see {home / 'child.log'}")
            break
    if kills:
        campaign.lost.append(max(0.0, spent - undisturbed) / kills)


def ray_workers(root: int) -> list[int]:
    """Return the pids of Ray's worker processes that compute below `root`."""
    parents, workers = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if (entry / "cmdline").read_bytes().startswith(b"ray::_perform"):
                    workers.append(int(entry.name))
            except OSError:
                continue

    def below(pid: int) -> bool:
        while pid in parents:
            if pid == root:
                return True
            pid = parents[pid]
        return False

    return [pid for pid in workers if below(pid)]


def kill_ray(home: Path, draw: random.Random, undisturbed: float, campaign: Campaign) -> None:
    """Kill computing Ray workers under a run, which is expected to end without help."""
    began, kills = time.monotonic(), 0
    pid = run_child(home, runner="ray")
    # Far enough apart that the same task is rarely hit four times, after which it fails.
    while (status := ended(pid, draw.uniform(0.02, 0.2) * undisturbed)) is None:
        workers = ray_workers(pid)
        if workers and kills < 6:
            kill(draw.choice(workers))
            kills += 1
            campaign.kills += 1
            campaign.places[going_on(home)] += 1
    if status != 0:
        # A task whose workers died four times fails the run; running it again does the rest.
        campaign.places["run again"] += 1
        status = ended(run_child(home, runner="ray"), _RUN_SECONDS)
    if status != 0:
        campaign.wrong.append(f"{home.name}: a run failed, see {home / 'child.log'}")
    elif kills:
        campaign.lost.append(max(0.0, time.monotonic() - began - undisturbed) / kills)


def kill_worker(home: Path, draw: random.Random, undisturbed: float, campaign: Campaign) -> None:
    """Kill a Prefect worker and the flow that it runs, then start a worker and the same run anew."""
    environment = {**os.environ, "CUDD_HOME": str(home), "PREFECT_LOGGING_EXTRA_LOGGERS": "cudd"}
    prefect = [sys.executable, "-m", "prefect"]
    start = [*prefect, "deployment", "run", "distill/digits", "-p", f"recipe={home / 'tiny.yaml'}"]
    kills = 0
    began = time.monotonic()
    while True:
        with (home / "child.log").open("ab") as log:
            log.write(b"=== begin\n")
            worker = subprocess.Popen(
                [*prefect, "worker", "start", "--pool", "cudd-local", "--limit", "1"],
                env=environment,
                stdout=log,
                stderr=log,
            )
            last = kills >= 3
            done = subprocess.run(
                [*start, "--watch"] if last else start,
                env=environment,
                stdout=log,
                stderr=log,
                timeout=_RUN_SECONDS,
                check=False,
            )
        if last:
            worker.terminate()
            worker.wait()
            if done.returncode:
                campaign.wrong.append(f"{home.name}: the last run failed, see {home / 'child.log'}")
            break
        deadline = time.monotonic() + 120
        while not (flows := _children(worker.pid)) and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(draw.uniform(8.0, 30.0))
        for pid in (worker.pid, *flows):
            kill(pid)
        worker.wait()
        kills += 1
        campaign.kills += 1
        campaign.places[going_on(home)] += 1
    from tasks.store import Store

    runs = Store.from_environment(home).pipelines.search("attributes.status = 'FINISHED'")
    ids = [run.info.run_id for run in runs if "mlflow.parentRunId" not in run.data.tags]
    if ids:
        text = Store.from_environment(home).pipelines.read_text(ids[0], "summary.json")
        (home / "summary.json").write_text(text)
        campaign.lost.append(max(0.0, time.monotonic() - began - undisturbed) / kills)


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


MODES = {"flow": kill_flow, "ray": kill_ray, "worker": kill_worker}


def main() -> int:
    """Run a campaign; print and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="flow")
    parser.add_argument("--kills", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    # A shell starts what runs in the background with SIGINT ignored, and a Prefect worker ends itself with SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cudd-kills-", ignore_cleanup_errors=True) as folder:
        parent = Path(folder)
        os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] = "cudd"
        with own_prefect(parent):
            report = run_campaign(parent, options.mode, options.kills, options.seed)
    text = json.dumps(report, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")
    return 1 if report["wrong"] else 0


def run_campaign(parent: Path, mode: str, kills: int, seed: int) -> dict[str, Any]:
    """Run undisturbed once, then kill."""
    import matplotlib.backends.backend_agg  # noqa: F401
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    import flows.distill  # noqa: F401
    from tasks.mlflow_connection import make_database, quieten_mlflow

    if mode == "worker":
        quiet = {"cwd": Path(__file__).parents[1], "check": True, "stdout": subprocess.DEVNULL}
        for words in (
            ["work-pool", "create", "cudd-local", "--type", "process"],
            ["deploy", "--name", "digits", "--no-prompt"],
        ):
            subprocess.run([sys.executable, "-m", "prefect", *words], **quiet)  # type: ignore[call-overload]
    quieten_mlflow()
    template = parent / "template.db"
    pid = os.fork()
    if pid == 0:
        make_database(template)
        os._exit(0)
    os.waitpid(pid, 0)
    runner = "ray" if mode == "ray" else "local"
    first = new_home(parent, 0, template)
    began = time.monotonic()
    if ended(run_child(first, runner), _RUN_SECONDS) != 0:
        raise SystemExit((first / "child.log").read_text()[-3000:])
    undisturbed = time.monotonic() - began
    digest = json.loads((first / "summary.json").read_text())["dataset"]["digest"]
    print(f"undisturbed: {undisturbed:.1f} s, digest {digest[:16]}", flush=True)
    campaign, draw = Campaign(mode, seed), random.Random(seed)
    while campaign.kills < kills and len(campaign.wrong) < 5:
        campaign.homes += 1
        home = new_home(parent, campaign.homes, template)
        MODES[mode](home, draw, undisturbed, campaign)
        campaign.wrong += _examined(home, digest)
        print(f"home {campaign.homes}: {campaign.kills} kills, {len(campaign.wrong)} wrong", flush=True)
        for problem in campaign.wrong:
            print(f"  {problem}", flush=True)
        if campaign.wrong:
            print((home / "child.log").read_text(errors="replace")[-3000:], flush=True)
    return campaign.report(undisturbed)


def _examined(home: Path, digest: str) -> list[str]:
    """Examine in a fork, so that the parent never opens a database."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found = examine(home, digest)
        except BaseException as error:
            found = [f"{home.name}: {type(error).__name__}: {error}"]
        os.write(writing, json.dumps(found).encode()[:60_000])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    problems: list[str] = json.loads(text)
    return problems


if __name__ == "__main__":
    sys.exit(main())
