"""A home in which one recipe was run in several forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tasks.store import Store


@dataclass(frozen=True)
class House:
    """A home folder and the summaries of its runs, by form."""

    home: Path
    summaries: dict[str, dict[str, Any]]

    def store(self) -> Store:
        return Store.from_environment(self.home).connect()

    def run(self, form: str) -> str:
        """MLflow run of a form."""
        return str(self.summaries[form]["mlflow_run_id"])

    def digests(self, form: str) -> dict[str, str]:
        """Name of each part of a run → digest. No two parts have one name."""
        from flows.beginning import walk_run

        parts = walk_run(self.run(form), self.store()).parts
        assert len({part.name for part in parts}) == len(parts)
        return {part.name: part.ref.digest for part in parts}


def build(home: Path, recipe: str, forms: Mapping[str, Sequence[str]]) -> House:
    """Distil a recipe, given as YAML, in each form: settings that are laid over it.

    Pictures, half of a tiny run's time, are not drawn.
    """
    from flows.distill import distill
    from flows.summary import log_metrics, summarize

    def finish(run: Any, recipe: Any, results: Any) -> dict[str, Any]:
        summary = summarize(run, recipe, results)
        log_metrics(run, results, summary)
        return summary

    (home / "tiny.yaml").write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "CUDD_ARTIFACT_ROOT"):
            patch.delenv(name, raising=False)
        patch.setenv("CUDD_HOME", str(home))
        patch.setattr("flows.distill.finish", finish)
        runs = {form: distill(recipe=str(home / "tiny.yaml"), overrides=list(each)) for form, each in forms.items()}
    return House(home, runs)
