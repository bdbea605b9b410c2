"""Read a file of `torch.save` without running anything in it; shared by the scripts that convert such files."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import torch


class Ignored:
    """Stands in for values that are often stored beside tensors but not needed; their content is dropped."""

    NAMES = (
        "argparse.Namespace",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",
    )

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def read_plain(path: Path, instead: str) -> Any:
    """Return tensors and plain values; of what the file names, only PyTorch's own tensor builders are called.

    `instead`: what somebody who trusts a refused file can do. Raises SystemExit: no such file, damaged, or refused.
    """
    if not path.is_file():
        raise SystemExit(f"There is no file {path}.")
    try:
        with torch.serialization.safe_globals([(Ignored, name) for name in Ignored.NAMES]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        needed = re.search(r"GLOBAL (\S+)", str(error))
        if needed is None:
            raise SystemExit(
                f"{path} is damaged, or not a file of torch.save that PyTorch reads safely ({type(error).__name__})."
            ) from error
        raise SystemExit(
            f"{path} is refused: to read it, {needed[1]} would have to run. Only tensors and plain values are read. If "
            f"you trust the file, {instead}"
        ) from error
