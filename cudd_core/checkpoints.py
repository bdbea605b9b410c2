"""Files that a killed computation goes on from. What they hold: `training`, `objectives.checkpoint`, `train_expert`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cudd_core.tensor_files import write_tensors

_log = logging.getLogger("cudd.checkpoints")


def write_checkpoint(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Replace `file` atomically, also where the machine loses power: its bytes are on the disk before its name is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    write_tensors(tensors, partial)
    with partial.open("rb+") as written:
        os.fsync(written.fileno())
    partial.replace(file)


def read_checkpoint(file: Path) -> dict[str, Tensor] | None:
    """Return what `file` holds; None if there is none, or one that is damaged, which is told and removed.

    The work of a checkpoint can be done again; a damaged one must not stop every attempt at that. One that the system
    cannot read at present may be whole, and stays: its OSError is raised.
    """
    if not file.exists():
        return None
    try:
        return load_file(file)
    except SafetensorError as error:
        _log.warning("checkpoint %s is damaged and removed, so its work begins anew: %s", file, error)
        file.unlink(missing_ok=True)
        return None


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by what follows it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
