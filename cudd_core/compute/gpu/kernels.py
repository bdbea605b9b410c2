"""Whether kernels written in Triton can be built on this machine, found out by building them."""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch

_log = logging.getLogger("cudd.kernels")


@functools.cache
def gpu_kernels(name: str) -> ModuleType | None:
    """Return the module `cudd_core.compute.NAME` after its `check`, or None, with a warning, if that fails."""
    try:
        module = importlib.import_module(f"cudd_core.compute.gpu.{name}")
        module.check(torch.device("cuda"))
    except torch.OutOfMemoryError:
        raise  # says nothing about the kernels
    except Exception as error:
        # Triton can fail in many ways: it or a C compiler is missing, or its cache cannot be written.
        _log.warning("this GPU computes more slowly than it could: the kernels of %s cannot be built (%s)", name, error)
        return None
    return module
