"""What the Prefect server does on its own when a run dies: it notices, restarts the run, and eventually gives up.

Runs of deployments send a heartbeat every 30 s (`PREFECT_FLOWS_HEARTBEAT_FREQUENCY` in prefect.yaml). The automations:

    silent     no heartbeat for 90 s                      → Crashed
    stuck      Pending for 30 min, never Running          → Crashed
    stopped    Cancelling for 5 min                       → Cancelled
    restart    Crashed, and no sign of life for 2 min     → AwaitingRetry, where any worker of its queue takes it
    give up    Crashed for the fourth time within a day   → Failed, which `restart` leaves alone

They apply only to runs with the tag `cudd`, so a server may be shared with other people's flows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

TAG = "cudd"
"""The tag of every deployment in prefect.yaml."""

_RUN = "prefect.flow-run."
_BEAT, _CRASHED, _PENDING = f"{_RUN}heartbeat", f"{_RUN}Crashed", f"{_RUN}Pending"
# Without Crashed: on SQLite, a trigger that only waits for an event fails if another writer interferes, and the server
# may then drop the event for all triggers. `restart` must not lose it, and the triggers that use this do not need it.
_ENDED = {f"{_RUN}{name}" for name in ("Completed", "Failed", "Cancelled", "TimedOut")}
# A pod that waits for room on a cluster's nodes, perhaps for hours.
_WAITING = f"{_RUN}InfrastructurePending"
# A run that was put back into its queue, or is being stopped by a person, sends no heartbeats and need not.
_LEFT = {f"{_RUN}{name}" for name in ("Scheduled", "AwaitingRetry", "Cancelling", "Paused", "Suspended")}
_CANCELLING = f"{_RUN}Cancelling"
_STARTED = {f"{_RUN}{name}" for name in ("Running", "Retrying")}


@dataclass(frozen=True)
class Patience:
    """How long each automation waits. Heartbeats cannot be less than 30 s apart: Prefect's minimum.

    `rest` is longer than the time between heartbeats, so that a run that was declared dead while its server was down,
    but is alive, has shown it; longer than the 15 s in which a worker may still report the crash of a run that is back
    in its queue; and longer than `silence`, so that the crashed attempt's silence is not attributed to the next one.
    """

    silence: timedelta = timedelta(seconds=90)
    pending: timedelta = timedelta(minutes=30)
    cancelling: timedelta = timedelta(minutes=5)
    rest: timedelta = timedelta(minutes=2)
    restarts: int = 3
    window: timedelta = timedelta(days=1)


def automations(patience: Patience | None = None) -> list[AutomationCore]:
    """Return the automations."""
    times = patience or Patience()
    return [
        AutomationCore(
            name="cudd: a silent run has crashed",
            description="Its worker and its process were killed, or their machine went away.",
            trigger=_trigger(Posture.Proactive, after={_BEAT}, expect={_BEAT} | _ENDED | _LEFT, within=times.silence),
            actions=[_becomes(StateType.CRASHED, f"No heartbeat for {_words(times.silence)}.")],
        ),
        AutomationCore(
            name="cudd: a run that never starts has crashed",
            description="Its worker was killed between taking it and starting it.",
            trigger=_trigger(
                Posture.Proactive,
                after={_PENDING},
                expect=_STARTED | _ENDED | _LEFT | {_BEAT, _WAITING},
                within=times.pending,
            ),
            actions=[_becomes(StateType.CRASHED, f"Pending for {_words(times.pending)} without starting.")],
        ),
        AutomationCore(
            name="cudd: a run that nobody stops is cancelled",
            description="It was cancelled by a person, and its worker is not there to carry that out.",
            trigger=_trigger(Posture.Proactive, after={_CANCELLING}, expect=_ENDED, within=times.cancelling),
            actions=[_becomes(StateType.CANCELLED, "Cancelled; its worker did not answer.")],
        ),
        AutomationCore(
            name="cudd: a crashed run starts again",
            description="It goes on from its finished stages and checkpoints.",
            trigger=_trigger(
                # Any event of the run, even a late heartbeat, shows that it needs no restart.
                Posture.Proactive,
                after={_CRASHED},
                expect={f"{_RUN}*"},
                within=times.rest,
            ),
            actions=[_becomes(StateType.SCHEDULED, "Starts again after a crash.", name="AwaitingRetry")],
        ),
        AutomationCore(
            name="cudd: a run that keeps crashing has failed",
            description="Otherwise one that needs more memory than there is would start again for ever.",
            trigger=_trigger(Posture.Reactive, expect={_CRASHED}, threshold=times.restarts + 1, within=times.window),
            actions=[
                _becomes(
                    StateType.FAILED,
                    f"Crashed {times.restarts + 1} times within {_words(times.window)}: it is not started again.",
                )
            ],
        ),
    ]


def install_automations(patience: Patience | None = None) -> list[str]:
    """Create the automations on the Prefect server in use, or bring them up to date; return their names.

    One that somebody has switched off stays off.
    """
    wanted = automations(patience)
    with get_client(sync_client=True) as client:
        for automation in wanted:
            existing = client.read_automations_by_name(automation.name)
            if existing:
                there, kept = existing[0], automation.model_copy(update={"enabled": existing[0].enabled})
                # An update makes the server forget for which runs it was waiting: one whose worker was killed while
                # `cudd serve` started again would be RUNNING for ever, and keep the place of its queue.
                if AutomationCore(**there.model_dump(include=set(AutomationCore.model_fields))) != kept:
                    client.update_automation(there.id, kept)
                for copy in existing[1:]:  # left by two installations at the same time
                    client.delete_automation(copy.id)
            else:
                client.create_automation(automation)
    return [automation.name for automation in wanted]


def _trigger(
    posture: Posture,
    *,
    expect: set[str],
    within: timedelta,
    after: frozenset[str] | set[str] = frozenset(),
    threshold: int = 1,
) -> EventTrigger:
    """Return a trigger that watches each run tagged `TAG`.

    Proactive: fires if fewer than `threshold` events of `expect` follow an event of `after` in the time `within`.
    Reactive: fires once that many occur in that time.
    """
    return EventTrigger(
        posture=posture,
        match={"prefect.resource.id": f"{_RUN}*"},
        match_related={"prefect.resource.id": f"prefect.tag.{TAG}", "prefect.resource.role": "tag"},
        for_each={"prefect.resource.id"},
        after=set(after),
        expect=expect,
        threshold=threshold,
        within=within,
    )


def _becomes(state: StateType, message: str, name: str | None = None) -> ChangeFlowRunState:
    # Not forced, so that the server's rules leave a run that has ended meanwhile alone, and free its concurrency slot.
    return ChangeFlowRunState(state=state, name=name, message=message)


def _words(duration: timedelta) -> str:
    seconds = int(duration.total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds % size == 0:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
