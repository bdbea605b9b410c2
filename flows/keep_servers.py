"""A process beside `cudd serve` that restarts servers that died, for as long as the process that started it lives."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

from cudd_core.errors import CuddError
from flows.servers import revive_server, running_server

SECONDS = 15.0
"""Time between two checks."""

_log = logging.getLogger("cudd.keep_servers")


def keep_servers(home: Path) -> None:
    """Start a process that looks after the servers now running for `home`, until this process ends."""
    names = [name for name in ("prefect", "mlflow") if running_server(home, name)]
    if names:
        # A server of our own must not find its own address in the environment.
        environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        command = (sys.executable, "-m", __name__, str(os.getpid()), str(home), *names)
        subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)


def main(starter: int, home: Path, names: list[str]) -> None:
    """Check every few seconds. Servers that somebody stopped with `cudd ui --stop` stay stopped.

    `starter`: the pid of the process that started this one, which may have died while this one imported.
    """
    while os.getppid() == starter:
        for name in names:
            try:
                if revive_server(home, name):
                    _log.warning("The %s server of %s had died and was started again.", name, home)
            except (CuddError, OSError) as error:
                _log.warning("The %s server of %s is not there: %s", name, home, error)
        time.sleep(SECONDS)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except KeyboardInterrupt:
        sys.exit(130)
