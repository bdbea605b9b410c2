"""What a command costs before it does anything, and a run before its first step.

    python benchmarks/startup.py                            --help, recipes, plan; a run's start, item by item
    python benchmarks/startup.py --json FILE

Commands are processes of their own, taking turns. The run is `cudd distill digits` cut to nothing, in an empty home
(its Prefect server and both databases are made) and again in the same one (`later`). Its items are the times between
marks that the child leaves: functions of `flows` and `tasks` are wrapped, nothing in them is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.timing import BUSY, ROOT, Spread, conditions, report

LIMITS = {"--help": 0.5, "recipes": 1.0, "plan digits": None}
RUN_LIMIT = 15.0
OVERRIDES = [
    "teacher.training.epochs=1",
    "teacher.minimum_margin=0",
    "synthesis.enabled=false",
    "schedule.ipc=1",
    "baselines=[]",
    "student.training.epochs=1",
    "evaluation.training.epochs=1",
    "evaluation.seeds=1",
]
ITEMS = [
    "python, command line",
    "imports, while a server starts",
    "server waited for",
    "Prefect's engine, recipe",
    "checks, data",
    "store, MLflow",
    "look-up, first step",
]


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-run", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child)
    settings = conditions(0)
    rows = commands(options.rounds)
    report("Commands, seconds", rows, settings, options.json and options.json.with_suffix(".commands.json"))
    if not options.no_run:
        report("A run before its first step, seconds", run(), settings, options.json)
    return 0


def commands(rounds: int) -> list[dict[str, Any]]:
    """Return a row a command."""
    wall: dict[str, list[float]] = {name: [] for name in LIMITS}
    cpu: dict[str, list[float]] = {name: [] for name in LIMITS}
    for number in range(-1, rounds):
        for name in LIMITS:
            before, started = os.times(), time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "flows.cli", *name.split()], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
            )
            seconds, after = time.perf_counter() - started, os.times()
            if number >= 0:
                wall[name].append(seconds)
                spent = after.children_user + after.children_system - before.children_user - before.children_system
                cpu[name].append(spent)
    rows = []
    for name, limit in LIMITS.items():
        found = Spread.of(wall[name])
        rows.append(
            {
                "command": f"cudd {name}",
                "wall": found,
                "CPU": Spread.of(cpu[name]),
                "limit": "" if limit is None else limit,
                "holds": "" if limit is None else found.median < limit,
                "n": rounds,
                "machine busy": sum(cpu[name]) < BUSY * sum(wall[name]),
            }
        )
    return rows


def run() -> list[dict[str, Any]]:
    """Return a row an item, for the first run of a home and a later one."""
    from flows.servers import stop_servers

    marks: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="cudd-start-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "CUDD_"))}
        environment |= {"CUDD_HOME": str(home)}
        try:
            for number in range(2):
                file = home / f"marks-{number}.json"
                command = [sys.executable, __file__, "--child", str(file)]
                subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
                marks.append(json.loads(file.read_text(encoding="utf-8")))
        finally:
            stop_servers(home)
    first, later = ([b - a for a, b in zip([0.0, *times], times, strict=False)] for times in marks)
    rows: list[dict[str, Any]] = [
        {"item": item, "first": a, "later": b} for item, a, b in zip(ITEMS, first, later, strict=True)
    ]
    return [*rows, {"item": f"all (limit {RUN_LIMIT:g} s, later runs)", "first": marks[0][-1], "later": marks[1][-1]}]


def child(destination: Path) -> int:
    """Run the flow, leave the seconds since the start of the process at each mark, in the order of `ITEMS`."""
    clock = os.sysconf("SC_CLK_TCK")
    ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[19])
    started = time.monotonic() - (float(Path("/proc/uptime").read_text(encoding="ascii").split()[0]) - ticks / clock)
    marks: dict[str, float] = {}

    def mark(name: str) -> None:
        marks.setdefault(name, time.monotonic() - started)

    import flows.cli  # noqa: F401 - what every command imports
    from flows import launch, servers

    mark(ITEMS[0])
    launch_server, own_server = servers.launch_prefect_server, servers.own_prefect_server

    def launched(home: Path) -> str:
        # As the caller does with it: Prefect reads it when it is imported.
        os.environ["PREFECT_API_URL"] = address = launch_server(home)
        import flows.distill
        import flows.prepare
        import tasks.call

        mark(ITEMS[1])
        wrap(flows.prepare, "check_recipe", before=ITEMS[3])
        wrap(flows.prepare, "check_data", after=ITEMS[4])
        wrap(flows.prepare, "link_in_prefect", after=ITEMS[5])
        perform = tasks.call.StageCall.perform

        def performed(self: Any, listener: Any) -> Any:
            inner = listener.started

            def started() -> None:
                mark(ITEMS[6])
                inner()

            listener.started = started
            found = perform(self, listener)
            mark(ITEMS[6])  # found in the store: the first look-up is all there is
            return found

        tasks.call.StageCall.perform = performed  # type: ignore[method-assign]
        return address

    def waited_for(home: Path) -> str:
        address = own_server(home)
        mark(ITEMS[2])
        return address

    def wrap(module: Any, name: str, before: str = "", after: str = "") -> None:
        inner = getattr(module, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if before:
                mark(before)
            result = inner(*arguments, **named)
            if after:
                mark(after)
            return result

        setattr(module, name, wrapped)

    # A later run computes again: what is measured is the way to the first step.
    parameters = {"recipe": "digits", "overrides": OVERRIDES, "force_stages": ["squeeze"]}
    with patch.multiple(launch, launch_prefect_server=launched, own_prefect_server=waited_for):
        launch.run_flow("distill", parameters, Path(os.environ["CUDD_HOME"]))
    destination.write_text(json.dumps([marks[item] for item in ITEMS]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
