"""A schedule fires on its own: `cudd serve` on an empty home, a cron schedule for every minute, the runs it makes.

    python benchmarks/scheduled.py [RUNS]      2 by default; some minutes on two cores

The runs are the digits recipe with a few epochs each. Nothing is started by hand: the script only adds the schedule
and reads what the server says. Prints each run's lateness, duration, state and reused tasks. Exit code 1 if one did
not complete.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.servers import own_home

ROOT = Path(__file__).parents[1]
TINY = [
    "teacher.training.epochs=1",
    "teacher.minimum_margin=0",
    "synthesis.iterations=5",
    "student.training.epochs=2",
    "evaluation.training.epochs=2",
    "evaluation.seeds=1",
    "data.limit_per_class=40",
]
WAIT = 1200.0


def main() -> int:
    """Serve, schedule, watch, stop."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        from flows.servers import ensure_prefect_server

        with own_home(home), serving(home):
            os.environ["PREFECT_API_URL"] = ensure_prefect_server(home)
            return watch(runs)


@contextmanager
def serving(home: Path) -> Iterator[None]:
    """Run `cudd serve` until the body is done."""
    started = time.monotonic()
    log = home / "serve.log"
    with log.open("wb") as file:
        command = (sys.executable, "-m", "flows.cli", "serve")
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        while "started!" not in log.read_text():
            if process.poll() is not None or time.monotonic() > started + WAIT:
                raise RuntimeError(log.read_text())
            time.sleep(0.5)
        print(f"cudd serve: the worker polls after {time.monotonic() - started:.1f} s", flush=True)
        yield
    finally:
        stopping = time.monotonic()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)  # what Ctrl-C does in a terminal
        process.wait(60)
        print(f"Ctrl-C: ended after {time.monotonic() - stopping:.1f} s with code {process.returncode}")


def watch(runs: int) -> int:
    """Add the schedule to distill/digits and report on the first runs that it makes."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterId,
        TaskRunFilter,
        TaskRunFilterStateName,
    )
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("distill/digits")
        schedule = {
            "schedule": {"cron": "* * * * *", "timezone": "UTC"},
            "active": True,
            "parameters": {"overrides": TINY},
        }
        client.request(
            "POST", "/deployments/{id}/schedules", path_params={"id": deployment.id}, json=[schedule]
        ).raise_for_status()
        reported: set[UUID] = set()
        good = True
        deadline = time.monotonic() + WAIT
        while len(reported) < runs and time.monotonic() < deadline:
            time.sleep(2)
            made = client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            )
            for run in made:
                planned, began = run.expected_start_time, run.start_time
                if run.id in reported or run.state is None or not run.state.is_final():
                    continue
                reported.add(run.id)
                good &= run.state.is_completed() and run.auto_scheduled
                reused = client.read_task_runs(
                    flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])),
                    task_run_filter=TaskRunFilter(state={"name": TaskRunFilterStateName(any_=["Reused"])}),
                )
                late = (began - planned).total_seconds() if began and planned else float("nan")
                print(
                    f"planned {planned:%H:%M:%S}, began {late:.0f} s later, "
                    f"ran {run.total_run_time.total_seconds():.0f} s: {run.state.name}, {len(reused)} tasks reused, "
                    f"made by the scheduler: {run.auto_scheduled}",
                    flush=True,
                )
    return 0 if good and len(reported) >= runs else 1


if __name__ == "__main__":
    sys.exit(main())
