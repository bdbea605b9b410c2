"""Ctrl-C in the shell of a run: a real process, a real signal, and what Prefect and MLflow say afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from tasks.store import STAGES_EXPERIMENT, Store

pytestmark = pytest.mark.usefixtures("prefect_server", "no_store_variables")

ROOT = Path(__file__).parents[2]
WAIT_SECONDS = 240.0
LONG = """
data: {source: digits, image_size: 8, channels: 1}
teacher:
  arch: convnet2-w8
  training: {optimizer: sgd, learning_rate: 0.1, weight_decay: 5.0e-4, epochs: 3, batch_size: 64}
schedule: {kind: logarithmic, ipc: 10, step: 5, block_size: 5, slices_per_shard: 5}
synthesis: {iterations: 1000000, batch_size: 10, jitter: 1}
relabel: {epochs_per_shard: 100}
student: {training: {epochs: 4, batch_size: 16}}
evaluation: {training: {epochs: 4, batch_size: 16}, seeds: 1}
baselines: []
compute: {device: cpu, threads: 1, amp: "off"}
"""


# These tests may run in a script's background, where Ctrl-C is ignored, and so would be their children's.
IN_A_SHELL = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
CUDD = f"{IN_A_SHELL}; from flows.cli import main; main()"

# What ends a run after Ctrl-C, held up for longer than anybody waits.
HELD_UP = f"""
{IN_A_SHELL}
import time
from flows.cancel import cancelled_by_interrupt
with cancelled_by_interrupt():
    try:
        print("started", flush=True)
        time.sleep(600)
    finally:
        time.sleep(600)
"""


@contextmanager
def running(code: str, arguments: Sequence[str], log: Path, until: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, as a shell starts it, that has said `until`. It is killed at the end."""
    command = [sys.executable, "-c", code, *arguments]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)
    try:
        wait_for(log, until, process)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_ctrl_c_cancels_the_run(
    make_home: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.settings import PREFECT_API_URL

    home, log = make_home("interrupt"), tmp_path / "log"
    monkeypatch.setenv("CUDD_HOME", str(home))
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    (home / "long.yaml").write_text(LONG)
    begun = "synthesize slices 0-4, classes 0-4: started"
    with running(CUDD, ["distill", str(home / "long.yaml")], log, begun) as process:
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == 130, log.read_text()
    assert "Stopped." in log.read_text() and "Traceback" not in log.read_text()

    store = Store.from_environment(home).connect()
    (run,) = store.pipelines.outermost()
    assert {each.info.status for each in store.pipelines.search()} == {"KILLED"}
    stages = store.client.get_experiment_by_name(STAGES_EXPERIMENT)
    assert stages is not None
    assert store.client.search_runs([stages.experiment_id], "attributes.status = 'RUNNING'") == []
    with get_client(sync_client=True) as client:
        flow_run = UUID(run.data.tags["cudd.prefect_flow_run"])
        assert client.read_flow_run(flow_run).state_name == "Cancelled"
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
        assert tasks and all(task.state is not None and task.state.is_final() for task in tasks)


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(HELD_UP, [], log, "started") as process:
        os.killpg(process.pid, signal.SIGINT)
        wait_for(log, "Ctrl-C again", process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(WAIT_SECONDS) == -signal.SIGINT
