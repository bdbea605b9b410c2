"""Tensors in safetensors files. A full disk raises OSError, as for any other file."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors by name, each with its own bytes. Raises OSError if they cannot be written."""
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        # Tied weights share memory, which safetensors refuses; each name gets its own copy.
        plain[name] = value.clone() if storage in seen else value
        seen.add(storage)
    path.touch()
    mode = path.stat().st_mode
    try:
        # One metadata entry at most: more would be written in a random order.
        save_file(plain, path, metadata={"format": "pt"})
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
    # safetensors makes files that only their owner reads, whatever the umask; a team shares its store and its exports.
    path.chmod(mode)
