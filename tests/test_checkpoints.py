"""Checkpoints: what is written is read; one that a power cut left in pieces stops nobody."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from cudd_core.checkpoints import read_checkpoint, write_checkpoint

TENSORS = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(7, dtype=torch.int64)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "checkpoint.safetensors"
    assert read_checkpoint(file) is None
    for number in range(2):
        write_checkpoint({**TENSORS, "b": torch.tensor(number)}, file)
        found = read_checkpoint(file)
        assert found is not None and torch.equal(found["a"], TENSORS["a"]) and int(found["b"]) == number
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_one_that_cannot_be_read_at_present_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "checkpoint.safetensors"
    write_checkpoint(TENSORS, file)

    def fails(path: Path) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr("cudd_core.checkpoints.load_file", fails)
        with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
            read_checkpoint(file)
    assert read_checkpoint(file) is not None


@pytest.mark.parametrize("kept", [0, 4, 60, -1])
def test_a_cut_file_is_told_and_removed(tmp_path: Path, kept: int, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "checkpoint.safetensors"
    write_checkpoint(TENSORS, file)
    file.write_bytes(file.read_bytes()[:kept])
    assert read_checkpoint(file) is None
    assert str(file) in caplog.text and not file.exists()
