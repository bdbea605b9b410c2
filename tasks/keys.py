"""The key of a stage's output: everything that determines it, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from cudd_core import NUMERICS_VERSION
from cudd_core.canonical import canonical_json


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the sha256 (hex) of a stage, its version, the config it reads, its inputs and the numerics version.

    `config` holds only the plain values and configurations that the stage reads; paths and numbers of workers or
    devices do not belong there. `inputs`: input name → content digest. Equal numbers (1 and 1.0), and a tuple and a
    list of the same values, give the same key.

    Raises:
        TypeError: a value has no canonical JSON form.

    Example:
        >>> stage_key("select", 1, {"seed": 0}, {}) == stage_key("select", 1, {"seed": 0.0}, {})
        True
    """
    identity = {
        "stage": stage,
        "version": version,
        "config": config,
        "inputs": inputs,
        "numerics": NUMERICS_VERSION,
    }
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()
