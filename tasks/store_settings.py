"""How long a store's servers are waited for, how often they are asked again, and how large files are split.

Left alone, boto3 gives S3 up after a tenth of a second of outage, MLflow a database after 100 seconds. What a user has
set wins: an environment variable, or a line of the AWS configuration file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Iterator
from typing import Any

from cudd_core.errors import StoreError

MLFLOW = {
    # A large proxied artifact is answered only when the server has passed it on.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",
    # Waits of 2, 4, 8, 16 and 32 seconds: a server may be away for a minute.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "6",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # They would go past the server, by presigned addresses of a bucket that clients often cannot reach; parts are sent
    # with neither timeout nor repetition. Left alone, MLflow does so for every download if the server can.
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(16 * 2**20),
    # Nothing here writes pickles, so one that turns up is not ours.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A flow has 16 tasks under way, which with MLflow's 5 + 10 connections could wait for one until it gives up.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "16",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "16",
}
"""MLflow's own variables, set where the environment does not have them."""

S3_CONNECT_SECONDS = 10
S3_TRANSFERS, S3_CONNECTIONS = 4, 64
"""Parts of one file, and connections of a process, at the same time."""

# setting → environment variable, name in the AWS configuration file, our value
_S3 = {
    "mode": ("AWS_RETRY_MODE", "retry_mode", "standard"),
    # The store itself asks again for a minute (`tasks/mlflow_calls.py`); these bridge what passes at once.
    "total_max_attempts": ("AWS_MAX_ATTEMPTS", "max_attempts", 5),
    # Every artifact is read back and compared by sha256, which works with all servers; CRC headers do not.
    "request_checksum_calculation": (
        *("AWS_REQUEST_CHECKSUM_CALCULATION", "request_checksum_calculation"),
        "when_required",
    ),
    "response_checksum_validation": (
        *("AWS_RESPONSE_CHECKSUM_VALIDATION", "response_checksum_validation"),
        "when_required",
    ),
}
_DATABASE_SECONDS = 10
_FIRST_START_LOCK = 0x63756464  # "cudd": any number that nobody else locks

_s3_lock = threading.Lock()


def configure_mlflow() -> None:
    """Set MLflow's variables, for this process and those that it starts."""
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)


def configure_s3() -> None:
    """Give boto3's default session, from which MLflow makes its clients, our settings; nothing if there is one.

    Raises:
        botocore.exceptions.BotoCoreError: the AWS configuration file cannot be read, or lacks the profile.
    """
    import boto3
    from botocore.config import Config
    from botocore.session import get_session

    with _s3_lock:
        if boto3.DEFAULT_SESSION is not None:
            return
        core = get_session()
        named = core.get_scoped_config()
        ours = {n: value for n, (variable, line, value) in _S3.items() if not os.environ.get(variable, named.get(line))}
        retries = {name: ours.pop(name) for name in ("mode", "total_max_attempts") if name in ours}
        core.set_default_client_config(
            Config(
                connect_timeout=S3_CONNECT_SECONDS,
                read_timeout=int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]),
                tcp_keepalive=True,
                max_pool_connections=S3_CONNECTIONS,
                retries=retries,
                **ours,
            )
        )
        session = boto3.Session(botocore_session=core)
        # MLflow passes no transfer configuration, so the methods that it calls get one when the client's class is made.
        session.events.register("creating-client-class.s3", _split_files)
        boto3.DEFAULT_SESSION = session


def _split_files(class_attributes: dict[str, Any], **_: object) -> None:
    from boto3.s3.transfer import TransferConfig

    size = int(os.environ["MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE"])
    config = TransferConfig(multipart_threshold=size, multipart_chunksize=size, max_concurrency=S3_TRANSFERS)
    for name in ("upload_file", "download_file"):
        class_attributes[name] = functools.partialmethod(class_attributes[name], Config=config)


@contextlib.contextmanager
def database(uri: str, name: str) -> Iterator[None]:
    """Fail soon if the database behind `uri` does not answer; on PostgreSQL, keep other first starts out meanwhile.

    `name`: the URI as messages may show it.

    Raises:
        StoreError: no driver, no server, no such database, or refused.
    """
    import sqlalchemy

    try:
        # libpq's name; other drivers have others, and their own defaults.
        waits = {"connect_timeout": _DATABASE_SECONDS} if uri.startswith("postgresql") else {}
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=waits)
        connection = engine.connect()
    except ImportError as error:
        raise StoreError(
            f"Database {name}: its driver is not installed ({error}). For PostgreSQL: pip install 'psycopg[binary]', "
            "and postgresql+psycopg:// in MLFLOW_TRACKING_URI."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:  # a port that is no number
        reason = str(getattr(error, "orig", error)).strip()
        raise StoreError(
            f"Database {name} cannot be opened: {reason}. Start it, correct MLFLOW_TRACKING_URI, or unset it to use a "
            "local database."
        ) from error
    with connection:
        if engine.dialect.name == "postgresql":
            # The server releases it with the transaction that begins here, also by a kill and behind a pool.
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_FIRST_START_LOCK})"))
        yield
