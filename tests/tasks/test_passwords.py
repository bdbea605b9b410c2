"""No password in what is said, printed or logged, wherever in an address it stands."""

from __future__ import annotations

import traceback

import pytest
from mlflow.exceptions import MlflowException

from cudd_core.errors import StoreError
from tasks.mlflow_calls import Calls
from tasks.passwords import redact, shows_password

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    "address",
    [
        "http://ann:hunter2@host:5000/api",
        "http://ann@corp.com:hunter2@host:5000/api",
        "https://ann:hun@hunter2@host",
        "http://ann:hun/hunter2@host",
        "postgresql+psycopg://ann:hun/hunter2@host/db",
        "postgresql://host/db?user=ann&password=hunter2",
        "mysql+pymysql://host/db?ssl=1&sslpassword=hunter2",
        "s3://bucket/x?X-Amz-Security-Token=hunter2",
    ],
)
def test_passwords_are_hidden_and_places_are_not(address: str) -> None:
    shown = redact(f"see {address}, and s3://b/c")
    assert "hunter2" not in shown and "s3://b/c" in shown
    assert ("host" in shown) is ("host" in address)
    assert redact(shown) == shown


def test_what_has_none_stays_as_it_is() -> None:
    text = "https://host/a@b?tokens=3 http://host:5000/#/a@b sqlite:////home/ann@work/mlflow.db postgresql://host/db"
    assert redact(text.replace("tokens", "size")) == text.replace("tokens", "size")


def test_a_refusal_names_what_it_came_of_only_without_a_password() -> None:
    """Prefect logs an error with its causes."""

    address = f"http://ann:{PASSWORD}@host"  # tracebacks show source lines

    def told(cause: Exception) -> StoreError:
        def ask() -> None:
            raise cause

        with pytest.raises(StoreError) as caught:
            Calls(address)("asking", ask)
        return caught.value

    hidden, harmless = (told(MlflowException(text)) for text in (f"request to {address} failed", "no"))
    assert PASSWORD not in "".join(traceback.format_exception(hidden))
    assert isinstance(harmless.__cause__, MlflowException)
    inner = RuntimeError("outer")
    inner.__cause__ = ValueError(address)
    assert shows_password(inner) and not shows_password(RuntimeError("outer"))
