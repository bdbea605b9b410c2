from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers import BUCKET, S3, forget_clients
from cudd_core.errors import StoreError
from tasks import mlflow_calls, store_settings
from tasks.store import Store


def mlflows_client() -> Any:
    from mlflow.store.artifact import s3_artifact_repo

    make: Any = s3_artifact_repo._get_s3_client
    return make()


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[], Any]]:
    """MLflow's S3 client as this process would get it now."""
    store_settings.configure_mlflow()
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    def make() -> Any:
        forget_clients()
        store_settings.configure_s3()
        return mlflows_client()

    yield make
    forget_clients()


def test_s3_settings_are_explicit_and_the_users_win(
    client: Callable[[], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = client().meta.config
    assert ours.retries == {"mode": "standard", "total_max_attempts": 5}
    assert (ours.connect_timeout, ours.read_timeout) == (10, int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
    assert ours.request_checksum_calculation == ours.response_checksum_validation == "when_required"

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    (tmp_path / "config").write_text("[default]\nretry_mode = adaptive\n")
    theirs = client().meta.config
    assert theirs.retries == {"mode": "adaptive", "total_max_attempts": 2}
    assert (theirs.request_checksum_calculation, theirs.read_timeout) == ("when_supported", 7)


def test_a_session_of_the_users_is_left_alone(client: Callable[[], Any]) -> None:
    import boto3

    forget_clients()
    boto3.setup_default_session(region_name="eu-central-1")
    theirs = boto3.DEFAULT_SESSION
    store_settings.configure_s3()
    assert boto3.DEFAULT_SESSION is theirs


def test_mlflow_variables_are_set_only_where_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
    store_settings.configure_mlflow()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"


def test_large_files_go_in_parts(s3: S3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store_settings.configure_mlflow()
    monkeypatch.setenv("MLFLOW_MULTIPART_UPLOAD_CHUNK_SIZE", str(5 * 2**20))
    store_settings.configure_s3()
    made, client = list[str](), mlflows_client()
    for operation in ("PutObject", "UploadPart", "GetObject"):
        client.meta.events.register(f"before-call.s3.{operation}", lambda model, **_: made.append(model.name))
    sent, got = tmp_path / "sent", tmp_path / "got"
    sent.write_bytes(os.urandom(11 * 2**20))
    client.upload_file(str(sent), BUCKET, "large")
    client.download_file(BUCKET, "large", str(got))
    assert got.read_bytes() == sent.read_bytes()
    assert made.count("UploadPart") == 3 and made.count("GetObject") >= 3 and "PutObject" not in made


def test_a_database_that_is_away_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MLflow alone tries for 100 seconds.
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s"))
    with pytest.raises(StoreError, match=r"Database postgresql\+psycopg://\*\*\*@127\.0\.0\.1:9/x cannot be opened"):
        Store("postgresql+psycopg://me:secret@127.0.0.1:9/x", tmp_path / "cache").connect()


def test_a_missing_driver_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"psycopg\[binary\]"):
        Store("postgresql+pg8000://me@127.0.0.1:9/x", tmp_path / "cache").connect()


# ---- outages --------------------------------------------------------------------------------------------------------


def failing(store: Store, monkeypatch: pytest.MonkeyPatch, error: Exception, times: int) -> list[int]:
    """Let `create_run` fail so many times; count the calls."""
    calls, original = list[int](), store.connect().client.create_run

    def create_run(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(store.client, "create_run", create_run)
    monkeypatch.setattr(mlflow_calls, "OUTAGE_WAITS", (0.01, 0.01, 0.01))
    return calls


def test_outages_are_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = failing(store, monkeypatch, ConnectionResetError(104, "Connection reset by peer"), 3)
    assert store.begin("0" * 64, "x") and len(calls) == 4


@pytest.mark.parametrize("times", [4, 100])
def test_but_not_for_ever(store: Store, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    calls = failing(store, monkeypatch, ConnectionResetError(104, "Connection reset by peer"), times)
    with pytest.raises(StoreError, match=r"starting run x.*reset by peer"):
        store.begin("0" * 64, "x")
    assert len(calls) == 4


def test_refusals_are_not_repeated(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError
    from mlflow.exceptions import MlflowException

    refusals: tuple[Exception, ...] = (
        ClientError({"Error": {"Code": "AccessDenied", "Message": "no"}}, "PutObject"),
        ClientError({"Error": {"Code": "403", "Message": "Forbidden"}}, "HeadObject"),
        MlflowException("bad value", error_code=1000),
        MlflowException("API request failed: Max retries exceeded with url: /api"),
    )
    for error in refusals:
        with monkeypatch.context() as patch:
            calls = failing(store, patch, error, 100)
            with pytest.raises(StoreError):
                store.begin("0" * 64, "x")
            assert len(calls) == 1, error
