"""What the store holds for every stage key, read at once by whoever asks about many keys.

If a `StageContext` carries a ledger, every task looks up its key there and stops. Walking through the flow's own code
then shows what a run would find: `status`, `fetch`, `export`, `coverage` and the checks of memory and disk before a run
do so. `gc` and `compare` read the attempts themselves: what they left, and what they took.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tasks.refs import Ref

if TYPE_CHECKING:  # a command may read the store before it knows the Prefect server, whose address Prefect reads then
    from prefect.client.schemas.objects import State

SECONDS = "seconds"
"""Metric of a stage run: how long its work took on its device, with input and checkpoints but without waiting."""

KeyState = Literal["stored", "running", "failed", "missing"]


@dataclass(frozen=True)
class Attempt:
    """One MLflow run of a stage. `ref` is set if it is FINISHED and was neither withdrawn nor replaced.

    Times are in seconds since 1970. `seconds`: how long its work took; None if that was not measured.
    """

    run_id: str
    key: str
    stage: str
    title: str
    status: str
    started: float
    ended: float | None
    pipeline_run: str
    reason: str
    ref: Ref | None
    artifact_uri: str
    seconds: float | None = None


@dataclass(frozen=True)
class Ledger:
    """All attempts and, by key, the output that readers see (`stored`) and the newest other attempt (`open`).

    `going_on`: ids of the pipeline runs that are RUNNING.
    """

    attempts: tuple[Attempt, ...]
    stored: dict[str, Attempt]
    open: dict[str, Attempt]
    going_on: frozenset[str] = frozenset()

    @classmethod
    def of(cls, attempts: Iterable[Attempt], going_on: Collection[str] = ()) -> Ledger:
        """Sort attempts by key: of several finished ones the earliest counts, as for readers; of others, the newest."""
        stored: dict[str, Attempt] = {}
        rest: dict[str, Attempt] = {}
        ordered = tuple(sorted(attempts, key=lambda attempt: (attempt.ended or attempt.started, attempt.run_id)))
        for each in ordered:
            if each.ref is not None:
                stored.setdefault(each.key, each)
            else:
                rest[each.key] = each
        return cls(ordered, stored, rest, frozenset(going_on))

    def standing(self, key: str) -> KeyState:
        """Return the state of the work on a key. Stopped and killed attempts do not count.

        A RUNNING attempt whose pipeline run is no longer RUNNING was killed with it. One that has no pipeline run is
        taken at its word.
        """
        if key in self.stored:
            return "stored"
        attempt = self.open.get(key)
        if attempt is None:
            return "missing"
        if attempt.status == "RUNNING" and (not attempt.pipeline_run or attempt.pipeline_run in self.going_on):
            return "running"
        return "failed" if attempt.status == "FAILED" else "missing"

    def state(self, stage: str, key: str, title: str) -> State[Ref]:
        """Return what the stage's task returns to a walk: a reference, in a state named by `standing`.

        The reference to a missing output has the key in place of a digest, so keys made from it are never found.
        """
        from prefect.states import Completed

        found = self.stored.get(key)
        ref = found.ref if found is not None else None
        return Completed(name=self.standing(key), data=ref or Ref(stage, key, "", key, 0), message=title)
