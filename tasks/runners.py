"""The names of runners. Nothing heavy is imported: the command line checks them before anything starts."""

from __future__ import annotations

import importlib.util

from cudd_core.errors import ConfigError
from tasks.addresses import home_folder, tracking_uri

LOCAL = "local"


def check_runner(runner: str) -> None:
    """Check, before anything starts, that a runner can be used, also with the store that the environment names.

    Raises:
        ConfigError: an unknown runner, Ray is not installed, or a cluster with a database that only this machine has.
    """
    if runner == LOCAL:
        return
    if runner != "ray" and not runner.startswith("ray://"):
        raise ConfigError(f"--runner {runner}: choose local, ray (on this machine) or ray://host:10001 (a cluster).")
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            f"--runner {runner} needs Ray: pip install 'cudd[ray]', or `uv pip install -e '.[ray]'` in a clone."
        )
    store = tracking_uri(home_folder())
    if runner.startswith("ray://") and store.startswith("sqlite"):
        raise ConfigError(
            f"--runner {runner}: the machines of a cluster cannot share the SQLite database {store}. Set "
            "MLFLOW_TRACKING_URI to a tracking server that all of them reach."
        )
