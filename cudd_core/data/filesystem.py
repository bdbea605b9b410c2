"""A local folder or an s3:// prefix as a pyarrow filesystem."""

from __future__ import annotations

import os
from pathlib import Path

from pyarrow.fs import FileSystem, LocalFileSystem

from cudd_core.errors import DataError


def open_filesystem(root: str) -> tuple[FileSystem, str]:
    """Return the filesystem that holds `root`, and the path of `root` on it.

    For s3://, credentials and region come from the usual AWS_* variables, files and instance roles, and a server other
    than Amazon's from AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or MLFLOW_S3_ENDPOINT_URL, in this order.

    Raises:
        DataError: the local folder does not exist, or an s3:// address has no bucket.
    """
    if root.startswith("s3://"):
        path = root.removeprefix("s3://").strip("/")
        if not path:
            raise DataError(f"data.root is {root!r}, which names no bucket. Write s3://BUCKET/PREFIX.")
        return _s3(), path
    require_folder(root)
    return LocalFileSystem(), Path(root).expanduser().resolve().as_posix()


def require_folder(root: str) -> Path:
    """Return `root` as an existing local folder.

    Raises:
        DataError: `root` is empty, missing or not a folder.
    """
    if not root:
        raise DataError("data.root is empty. Set it to the folder that holds the data.")
    folder = Path(root).expanduser()
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"The data folder {root} (data.root) {problem}. Set data.root to the folder that holds the data."
        )
    return folder


def read_text(path: Path) -> str:
    """Return the text of a local file that came with a data set. Raises DataError if it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8 ({error}). Unpack or copy it again.") from error


def _s3() -> FileSystem:
    try:
        from pyarrow.fs import S3FileSystem
    except ImportError as error:
        raise DataError(
            "This build of pyarrow has no S3 support. Install pyarrow from PyPI, or copy the data."
        ) from error
    names = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL")
    endpoint = next((value for name in names if (value := os.environ.get(name))), None)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    options: dict[str, str] = {}
    if endpoint:
        scheme, separator, host = endpoint.rpartition("://")
        options = {"endpoint_override": host.rstrip("/"), "scheme": scheme if separator else "https"}
        region = region or "us-east-1"  # servers other than Amazon's ignore it; without one, Amazon would be asked
    if region:
        options["region"] = region
    return S3FileSystem(**options)
