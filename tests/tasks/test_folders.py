"""A home that was moved: what its database calls missing lies in it, and the advice brings it back."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cudd_core.errors import StoreError
from cudd_core.records import Verdicts
from tasks.folders import check_there
from tasks.store import Store

KEY = "0123456789abcdef" * 4
RECORD = Verdicts(torch.arange(4), torch.tensor([1, 0, 1, 1], dtype=torch.int32))


def follow(advice: StoreError) -> None:
    """Do as the message says."""
    command = str(advice).splitlines()[-1]
    assert "ln -s" in command
    subprocess.run(command, shell=True, check=True)


def store_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("CUDD_HOME", str(home))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    # The template's own experiments have no artifact root.
    return Store(f"sqlite:///{home / 'mlflow.db'}", home / "cache", str(home / "artifacts"), experiment="stages")


def test_a_home_that_is_moved_twice_keeps_its_outputs(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "my home"
    home.mkdir()
    shutil.copy(template, home / "mlflow.db")
    ref = store_in(home, monkeypatch).commit(KEY, "classify", RECORD)
    for place in (tmp_path / "moved", tmp_path / "moved again"):
        home = home.rename(place)
        with pytest.raises(StoreError, match="was moved") as caught:
            store_in(home, monkeypatch).connect()
        follow(caught.value)
        store = store_in(home, monkeypatch)
        assert store.lookup(KEY) is not None
        fetched = store.fetch(ref)
        assert isinstance(fetched, Verdicts) and torch.equal(fetched.predicted, RECORD.predicted)


@pytest.mark.parametrize("there", [".", "old", "old/artifacts"])
def test_the_link_takes_the_place_of_nothing(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that still had the old home may have made some of it again."""
    store_in(tmp_path / "new", monkeypatch)
    file, lost = tmp_path / "new/artifacts/stages/file", tmp_path / "elsewhere/old/artifacts/stages"
    file.parent.mkdir(parents=True)
    file.touch()
    if there != ".":
        (tmp_path / "elsewhere" / there).mkdir(parents=True)
    with pytest.raises(StoreError, match="was moved") as caught:
        check_there(lost)
    follow(caught.value)
    assert (lost / "file").is_file()
    check_there(lost)


def test_a_share_that_is_away_is_not_looked_for_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that worked alone before it joined a team's store has artifacts too: others."""
    store_in(tmp_path / "home", monkeypatch)
    (tmp_path / "home/artifacts/stages").mkdir(parents=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql+psycopg://team/mlflow")
    with pytest.raises(StoreError, match="not mounted") as caught:
        check_there(tmp_path / "share/artifacts/stages")
    assert "ln -s" not in str(caught.value)
