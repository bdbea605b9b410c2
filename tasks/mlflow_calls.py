"""Requests to MLflow: queued for SQLite, repeated after collisions and outages, with errors translated into ours.

A request that hit a locked database, or inserted a row that another writer had just inserted (MLflow looks up datasets
and inputs first, without a lock), was rolled back, so it can be repeated.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from cudd_core.errors import ArtifactDamaged, CuddError, ResourceError, StoreError
from tasks.passwords import redact, shows_password

OUTAGE_WAITS: tuple[float, ...] = (1, 2, 4, 8, 15, 30)
"""Seconds to wait before each repetition during an outage, on top of what boto3 and MLflow repeat themselves."""

_COLLISION = re.compile(r"database is locked|UNIQUE constraint failed|duplicate key value|deadlock detected")
_BUSY_ATTEMPTS = 8
# _DISK: a full or write-protected disk. _REFUSED: refusals, and requests that MLflow has already repeated for a minute.
# Other errors may pass.
_DISK = re.compile(r"disk is full|No space left|File too large|readonly database|unable to open database|Disk quota")
_REFUSED = re.compile(
    r"Max retries exceeded|\((?:400|401|403|404)\)|\b40[0134] Client Error|AccessDenied|InvalidAccessKeyId|"
    r"SignatureDoesNotMatch|ExpiredToken|token has expired|TokenRefreshRequired|RequestTimeTooSkewed|NoSuchBucket|"
    r"InvalidBucketName|PermanentRedirect|[Cc]redentials|password authentication|calculated checksum"
)
_MAY_PASS = (None, "INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED")

_log = logging.getLogger("cudd.store")
T = TypeVar("T")


class Gone(StoreError):
    """The store says that the run or object does not exist."""


class Calls:
    """Makes every request to one tracking server or database, from any thread.

    `display_uri`: the tracking URI without a password, for messages and links. `reached`: whoever connects sets it once
    the store has answered. Until then, outages are not waited out: at the start, a person is there to fix them.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.display_uri = redact(tracking_uri)
        self.reached = False
        # SQLite allows one writer at a time, and the others sleep and retry: it is better for threads to queue here.
        self._turn = threading.Lock() if tracking_uri.startswith("sqlite") else contextlib.nullcontext()

    def __call__(self, doing: str, function: Callable[[], T], *, bulk: bool = False) -> T:
        """Return what `function` returns, calling it again where that may help.

        `doing`: its purpose, for messages. `bulk`: it transfers artifacts, so other requests need not wait for it.

        Raises:
            Gone: what was asked for does not exist.
            ArtifactDamaged: a download does not match the checksum that was stored beside it.
            StoreError: the request was refused, or an outage lasts.
            ResourceError: no space, or a local folder that cannot be written.
        """
        collisions = iter(range(1, _BUSY_ATTEMPTS))
        waits = iter(OUTAGE_WAITS if self.reached else ())
        while True:
            try:
                with contextlib.nullcontext() if bulk else self._turn:
                    return function()
            except CuddError:
                raise
            except _backend_errors() as error:
                exists = getattr(error, "error_code", None) == "RESOURCE_ALREADY_EXISTS"
                collision = not exists and _COLLISION.search(str(error)) is not None
                if collision and (number := next(collisions, None)) is not None:
                    time.sleep(0.05 * 2**number)
                elif not collision and _may_pass(error) and (wait := next(waits, None)) is not None:
                    _log.warning("%s: %s; again in %g s", doing, redact(str(error)).strip()[:300], wait)
                    time.sleep(wait)
                else:
                    self._refuse(doing, error)

    def _refuse(self, doing: str, error: BaseException) -> NoReturn:
        text = redact(str(error)).strip() or type(error).__name__
        # Prefect logs an error together with its causes.
        cause = None if shows_password(error) else error
        where = f"MLflow store {self.display_uri}, {doing}: "
        if _is_local(error) or _DISK.search(text):
            raise ResourceError(
                f"{where}{text}. Free some space or make the folder writable, or choose others with CUDD_HOME and "
                "CUDD_ARTIFACT_ROOT."
            ) from cause
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise Gone(f"{where}{text}") from cause
        if "did not match calculated checksum" in text:
            # boto3 compared a download with the CRC that was stored beside it.
            raise ArtifactDamaged(f"{where}{text}") from cause
        raise StoreError(
            f"{where}{text}. Check MLFLOW_TRACKING_URI, the artifact location and the credentials in the environment "
            "(AWS_*, MLFLOW_S3_ENDPOINT_URL), and that the server runs; then start the run again: it goes on where "
            "it stopped."
        ) from cause


def _backend_errors() -> tuple[type[BaseException], ...]:
    """Return the errors that MLflow and the clients beneath it raise. Those of `requests` are OSErrors."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError, sqlite3.Error, Boto3Error, BotoCoreError, ClientError)


def _may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later, because it hit an outage and was not refused."""
    if _is_local(error) or getattr(error, "error_code", None) not in _MAY_PASS:
        return False
    return not (_DISK.search(str(error)) or _REFUSED.search(str(error)))


def _is_local(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR)
    return isinstance(error, OSError) and error.errno in full
