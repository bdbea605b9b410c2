"""Checkpoint files, from which a killed computation resumes.

Their contents are defined in `training`, `objectives.checkpoint` and `train_expert`.
"""

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
    """Replace `file` atomically, even if the machine loses power: the bytes are on disk before the file is renamed."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    write_tensors(tensors, partial)
    with partial.open("rb+") as written:
        os.fsync(written.fileno())
    partial.replace(file)


def read_checkpoint(file: Path) -> dict[str, Tensor] | None:
    """Return the tensors in `file`, or None if it does not exist or is damaged; a damaged file is logged and removed.

    The work behind a checkpoint can be redone, so a damaged file must not make every further attempt fail. A file that
    the system cannot read at the moment may be intact: it is kept, and the OSError is raised.
    """
    if not file.exists():
        return None
    try:
        return load_file(file)
    except SafetensorError as error:
        _log.warning("checkpoint %s is damaged and removed, so its work begins anew: %s", file, error)
        file.unlink(missing_ok=True)
        return None


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, keyed by the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
