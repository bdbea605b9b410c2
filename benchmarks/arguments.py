"""The arguments that benchmarks share, so that each means the same everywhere."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Case = tuple[str, int]
"""An architecture and the images of a batch; on the command line ARCH:BATCH."""

SHARED: dict[str, dict[str, Any]] = {
    "seconds": {"type": float, "help": "of each case"},
    "device": {"choices": ("cpu", "cuda"), "default": "cpu"},
    "amp": {"choices": ("off", "bf16"), "default": "off"},
    "convolution": {"choices": ("winograd", "direct"), "default": "winograd"},
    "threads": {"type": int, "default": 1},
    "seed": {"type": int, "default": 0},
    "json": {"type": Path},
}


def arguments(text: str | None, *names: str, cases: Sequence[Case] = (), **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser of `names` among `SHARED`, of `defaults`, which are such names with another default, and --json.

    `cases` are those of a script that has --case, which are measured if none is given.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if cases:
        usual = ", ".join(f"{arch}:{batch}" for arch, batch in cases)
        parser.add_argument("--case", action="append", type=case, metavar="ARCH:BATCH", help=f"default: {usual}")
    for name in (*names, *defaults, "json"):
        parser.add_argument(f"--{name}", **SHARED[name])
    parser.set_defaults(**defaults)
    return parser


def case(text: str) -> Case:
    """Read ARCH:BATCH."""
    arch, _, batch = text.partition(":")
    return arch, int(batch)
