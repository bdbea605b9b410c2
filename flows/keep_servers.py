"""A process beside `cudd serve`: starts servers again that died, for as long as the one that started it lives."""

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
"""Between two looks."""

_log = logging.getLogger("cudd.keep_servers")


def keep_servers(home: Path) -> None:
    """Have the servers that run for `home` now looked after until this process ends, by a process of its own."""
    names = [name for name in ("prefect", "mlflow") if running_server(home, name)]
    if names:
        # A server of our own is not told that it has an address.
        environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
        command = (sys.executable, "-m", __name__, str(home), *names)
        subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)


def main(home: Path, names: list[str]) -> None:
    """Look every few seconds. Servers that somebody ended with `cudd ui --stop` stay so."""
    starter = os.getppid()
    while True:
        time.sleep(SECONDS)
        if os.getppid() != starter:
            return
        for name in names:
            try:
                if revive_server(home, name):
                    _log.warning("The %s server of %s had died and was started again.", name, home)
            except (CuddError, OSError) as error:
                _log.warning("The %s server of %s is not there: %s", name, home, error)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        main(Path(sys.argv[1]), sys.argv[2:])
    except KeyboardInterrupt:
        sys.exit(130)
