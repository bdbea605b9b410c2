"""Timeouts and retries for a store's servers, and how large files are split.

By default, boto3 gives up on S3 after a tenth of a second of outage, MLflow on a database after 100 seconds. A user's
own settings take precedence: an environment variable, or a line of the AWS configuration file.
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
    # The server answers the upload of a large proxied artifact only once it has passed it on.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",
    # Waits of 2, 4, 8, 16 and 32 seconds: a server may be down for a minute.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "6",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # Multipart transfers bypass the server, using presigned URLs of a bucket that clients often cannot reach, and send
    # parts without timeout or retry. By default, MLflow uses them for every download if the server supports them.
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
    "MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE": str(16 * 2**20),
    # Nothing here writes pickles, so one that turns up is not ours.
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    # A flow has 16 tasks in flight; with MLflow's default of 5 + 10 connections, one could time out waiting for one.
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "16",
    "MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW": "16",
}
"""MLflow's own variables, set unless the environment has them."""

S3_CONNECT_SECONDS = 10
S3_TRANSFERS, S3_CONNECTIONS = 4, 64
"""Parts of one file that are transferred at a time, and connections of a process."""

# setting → environment variable, name in the AWS configuration file, our value
_S3 = {
    "mode": ("AWS_RETRY_MODE", "retry_mode", "standard"),
    # The store itself retries for a minute (`tasks/mlflow_calls.py`); these retries bridge brief failures.
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
_FIRST_START_LOCK = 0x63756464  # "cudd"; any number will do that nobody else locks

_s3_lock = threading.Lock()


def configure_mlflow() -> None:
    """Set MLflow's variables, for this process and those that it starts."""
    for name, value in MLFLOW.items():
        os.environ.setdefault(name, value)


def configure_s3() -> None:
    """Create boto3's default session, from which MLflow makes its clients, with our settings, unless there is one.

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
        # MLflow passes no transfer configuration, so the methods it calls get one when the client's class is created.
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
    """Fail quickly if the database at `uri` does not answer; on PostgreSQL, also keep other first starts out meanwhile.

    `name`: the URI as messages may show it.

    Raises:
        StoreError: no driver, no server, no such database, or access refused.
    """
    import sqlalchemy

    try:
        # libpq's option; other drivers name it differently and have their own defaults.
        waits = {"connect_timeout": _DATABASE_SECONDS} if uri.startswith("postgresql") else {}
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool, connect_args=waits)
        connection = engine.connect()
    except ImportError as error:
        raise StoreError(
            f"Database {name}: its driver is not installed ({error}). For PostgreSQL: pip install 'psycopg[binary]', "
            "and postgresql+psycopg:// in MLFLOW_TRACKING_URI."
        ) from error
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:  # ValueError: a port that is not a number
        reason = str(getattr(error, "orig", error)).strip()
        raise StoreError(
            f"Database {name} cannot be opened: {reason}. Start it, correct MLFLOW_TRACKING_URI, or unset it to use a "
            "local database."
        ) from error
    with connection:
        if engine.dialect.name == "postgresql":
            # The server releases the lock when the transaction that begins here ends, even by a kill or behind a pool.
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({_FIRST_START_LOCK})"))
        yield
