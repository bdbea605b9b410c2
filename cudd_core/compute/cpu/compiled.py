"""This package's C sources, compiled for the current machine on first use, and helpers to pass them tensors."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

_log = logging.getLogger("cudd.kernels")

_FLAGS = (("-march=native",), ("-mcpu=native",), ())
"""Flags to use all that this machine's processor can do; a compiler accepts one, the other or neither."""


_MACROS: dict[torch.dtype, tuple[str, ...]] = {torch.float32: (), torch.float64: ("-DREAL=double",)}

TYPES = frozenset(_MACROS)
"""Types of values that the sources can be compiled for."""

Int = ctypes.c_long


@functools.cache
def library(source: str, dtype: torch.dtype = torch.float32) -> ctypes.CDLL | None:
    """Return a C source of this folder as a library for values of `dtype`, one of `TYPES`.

    None, with a warning, if it cannot be compiled on this machine.

    The environment variable `CC` names the compiler (default: cc). Libraries are kept in `$XDG_CACHE_HOME/cudd`
    (default: ~/.cache/cudd) and reused for the same source, compiler and kind of processor.
    """
    path = Path(__file__).with_name(source)
    compiler = shlex.split(os.environ.get("CC") or "cc")
    try:
        native, known = _processor(compiler)
        command = [*compiler, "-O3", *native, *_MACROS[dtype], "-shared", "-fPIC"]
        # The source, and the headers in this folder, which it may include.
        text = b"".join(file.read_bytes() for file in (path, *sorted(path.parent.glob("*.h"))))
        name = hashlib.sha256(b"\0".join((text, known, " ".join(command).encode()))).hexdigest()[:24]
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cudd"
        built = folder / f"{path.stem}-{name}.so"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_only_ours(folder)
        if not built.exists():
            # Processes that build it at the same time each write their own file.
            with tempfile.TemporaryDirectory(dir=folder) as own:
                made = Path(own) / built.name
                _run([*command, "-o", str(made), str(path)])
                made.replace(built)
        return ctypes.CDLL(str(built))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _log.warning(
            "networks compute on this CPU with slower kernels: %s cannot be compiled (%s). %s",
            source,
            error,
            "Name a folder that only you can write to in the environment variable XDG_CACHE_HOME."
            if isinstance(error, PermissionError)
            else "Install a C compiler, or name one in the environment variable CC.",
        )
        return None


def rows_of(images: Tensor) -> Tensor:
    """Return images [n, c, H, W] as the C code reads them, [n, H, W, c]; channels-last images are not copied."""
    return images.permute(0, 2, 3, 1).contiguous()


def at(values: Tensor | None, number: int = 0) -> ctypes.c_void_p:
    """Return the address of row `number`, NULL for None. The caller must keep the tensor alive."""
    return ctypes.c_void_p(None if values is None else values[number].data_ptr())


def _processor(compiler: list[str]) -> tuple[tuple[str, ...], bytes]:
    """Return the flags for this processor, and the compiler's macros for it, which include the compiler's version."""
    for flags in _FLAGS[:-1]:
        try:
            return flags, _run([*compiler, *flags, "-dM", "-E", "-x", "c", os.devnull])
        except RuntimeError:
            continue
    return _FLAGS[-1], _run([*compiler, "-dM", "-E", "-x", "c", os.devnull])


def _check_only_ours(folder: Path) -> None:
    """Raise PermissionError if others can write to `folder`: they could run code as this user."""
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(f"{folder} belongs to another user, or others can write to it")


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, check=False, capture_output=True, timeout=120)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(said[0] if said else f"{command[0]} ended with {done.returncode}")
    return done.stdout
