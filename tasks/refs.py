"""References: what tasks pass to each other instead of tensors and paths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ref:
    """A stored stage output. A plain dataclass: Prefect's `.map` would iterate over a pydantic model.

    `key`: the stage key; `digest`: that of the record's content (both sha256 hex); `run_id`: the MLflow run that holds
    it; `bytes`: stored size; `reused`: whether it existed before this task ran.
    """

    stage: str
    key: str
    run_id: str
    digest: str
    bytes: int
    reused: bool = False

    def __str__(self) -> str:
        return f"{self.stage} {self.digest[:12]} (MLflow run {self.run_id})"


ByNetwork = Mapping[str, Mapping[str, tuple[Ref, ...]]]
"""Method → architecture → one reference per fresh network: the network itself, or its measured accuracy."""
