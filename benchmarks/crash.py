"""Kill a worker and its run with SIGKILL, and time what the automations do about it.

    python benchmarks/crash.py             waits shortened to Prefect's minimum, about a minute
    python benchmarks/crash.py --real      the waits of flows/automations.py, about five minutes

A Prefect server of its own on loopback, a process worker, a flow that waits until it is killed and ends at once when
it is started again. Prints the seconds after the kill at which the run became Crashed, AwaitingRetry, Running and
Completed. Exit code 1 if it did not.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

FLOW = """
import os, time
from pathlib import Path
from prefect import flow
from prefect.runtime import flow_run

@flow
def trivial(folder: str) -> None:
    if flow_run.run_count == 1:
        Path(folder, "pid").write_text(str(os.getpid()))
        time.sleep(600)
"""
POOL = "crash"
WAIT = 420.0


def main() -> int:
    """Run it once and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", action="store_true", help="the waits that the product uses")
    real = parser.parse_args().real
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {"PREFECT_HOME": str(folder / "home"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        os.environ |= {"PREFECT_SERVER_EVENTS_PROACTIVE_GRANULARITY": "PT5S" if real else "PT1S"}
        os.environ |= {"PREFECT_WORKER_QUERY_SECONDS": "10" if real else "2"}
        os.environ.pop("PREFECT_API_URL", None)
        from flows.servers import ensure_prefect_server, stop_servers

        started = time.monotonic()
        os.environ["PREFECT_API_URL"] = ensure_prefect_server(folder)
        print(f"server after {time.monotonic() - started:.1f} s")
        try:
            return observe(folder, real)
        finally:
            stop_servers(folder)


def observe(folder: Path, real: bool) -> int:
    """Make the deployment, start it, kill it, and print what becomes of it."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.deployments import run_deployment

    from flows.automations import Patience, install_automations

    begin = time.monotonic()
    install_automations(None if real else Patience(silence=timedelta(seconds=10), rest=timedelta(seconds=10)))
    (folder / "trivial.py").write_text(FLOW)
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
        # Prefect's types have these answer a coroutine too, which they do only inside one.
        trivial: Any = flow.from_source(str(folder), "trivial.py:trivial")
        trivial.deploy(
            name=POOL,
            work_pool_name=POOL,
            tags=["cudd"],
            job_variables={"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}},
            print_next_steps=False,
        )
        run: Any = run_deployment(f"trivial/{POOL}", parameters={"folder": str(folder)}, timeout=0)
        with worker() as first:
            wait_for(lambda: (folder / "pid").exists() and (folder / "pid").read_text() != "")
            time.sleep(5)  # the first heartbeat is on its way to the server
            print(f"running after {time.monotonic() - begin:.1f} s; killing worker and run", flush=True)
            os.kill(first.pid, signal.SIGKILL)
            os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
        killed = time.time()
        seen: list[str] = []
        with worker():
            while time.time() < killed + WAIT and "Completed" not in seen:
                for state in client.read_flow_run_states(run.id):
                    after = state.timestamp.timestamp() - killed
                    if after > 0 and state.name not in seen:
                        seen.append(str(state.name))
                        print(f"{after:6.1f} s  {state.name}  {state.message or ''}", flush=True)
                time.sleep(0.5)
        count = client.read_flow_run(run.id).run_count
    print(f"{time.monotonic() - begin:.1f} s in all, run count {count}")
    wanted = ["Crashed", "AwaitingRetry", "Completed"]
    return 0 if [name for name in seen if name in wanted] == wanted and count == 2 else 1


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """Run a process worker of the pool."""
    command = (sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL, "--limit", "1")
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)


def wait_for(condition, seconds: float = WAIT) -> None:  # type: ignore[no-untyped-def]
    """Return when the condition holds.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("The run did not start.")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
