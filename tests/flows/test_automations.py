"""The automations on a real server: a run that falls silent crashes, starts again, and fails when it keeps crashing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.states import Cancelling, Crashed, Pending, Running, State

from flows.automations import TAG, Patience, automations, install_automations

SHORT = Patience(
    silence=timedelta(seconds=10),
    pending=timedelta(seconds=10),
    cancelling=timedelta(seconds=10),
    rest=timedelta(seconds=10),
    restarts=1,
)
"""Ten seconds are the least that Prefect waits for something not to happen."""
WAIT = 90


@pytest.fixture
def client(prefect_server: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as connected:
        yield connected


def installed(client: SyncPrefectClient) -> dict[str, Automation]:
    return {each.name: each for each in client.read_automations() if each.name.startswith(f"{TAG}:")}


def updates(client: SyncPrefectClient) -> dict[str, str]:
    """Return when each was changed last."""
    found = client.request("POST", "/automations/filter", json={}).json()
    return {each["name"]: each["updated"] for each in found if each["name"].startswith(f"{TAG}:")}


def test_they_are_installed_once_and_brought_up_to_date(client: SyncPrefectClient) -> None:
    names = install_automations(SHORT)
    before = installed(client)
    assert set(before) == set(names)
    assert install_automations() == names
    after = installed(client)
    assert {name: each.id for name, each in after.items()} == {name: each.id for name, each in before.items()}
    (silent, *_) = names
    assert before[silent].trigger.within == SHORT.silence
    assert after[silent].trigger.within == Patience().silence


def test_what_is_up_to_date_is_left_alone(client: SyncPrefectClient) -> None:
    """An update would make the server forget which runs it is waiting for, as when `cudd serve` starts again."""
    (first, *_) = install_automations()
    before = updates(client)
    install_automations()
    assert updates(client) == before
    client.pause_automation(installed(client)[first].id)
    before = updates(client)
    install_automations()
    assert updates(client) == before
    assert not installed(client)[first].enabled
    client.resume_automation(installed(client)[first].id)


def test_one_that_was_switched_off_stays_off(client: SyncPrefectClient) -> None:
    first, second, *_ = install_automations()
    found = installed(client)[first]
    on = AutomationCore(**found.model_dump(exclude={"id", "owner_resource"}))
    client.update_automation(found.id, on.model_copy(update={"enabled": False}))
    install_automations()
    assert not installed(client)[first].enabled
    assert installed(client)[second].enabled
    client.update_automation(found.id, on)


def test_of_two_that_were_installed_at_the_same_time_one_is_left(client: SyncPrefectClient) -> None:
    (first, *_) = install_automations()
    client.create_automation(automations()[0])
    install_automations()
    assert [each.name for each in client.read_automations()].count(first) == 1


def test_other_peoples_runs_are_left_alone() -> None:
    for automation in automations():
        trigger = automation.model_dump(mode="json")["trigger"]
        assert trigger["match"] == {"prefect.resource.id": "prefect.flow-run.*"}
        assert trigger["match_related"] == {
            "prefect.resource.id": f"prefect.tag.{TAG}",
            "prefect.resource.role": "tag",
        }
        assert trigger["for_each"] == ["prefect.resource.id"]


@pytest.mark.skipif(
    not os.environ.get("CUDD_TEST_SERVERS"),
    reason="a minute or more, and Prefect's server on SQLite drops events when busy; CUDD_TEST_SERVERS=1 runs it",
)
def test_dead_runs_are_noticed_started_again_and_given_up(client: SyncPrefectClient) -> None:
    """Up to three times: on SQLite, a busy Prefect server drops events ("database is locked")."""
    for left in (2, 1, 0):
        try:
            watch_dead_runs(client)
        except AssertionError:
            if left == 0:
                raise
        else:
            return


def watch_dead_runs(client: SyncPrefectClient) -> None:
    """No process runs: this says what a worker and a flow would say, and then nothing."""
    install_automations(SHORT)
    make = run_maker(client)
    killed, taken, stopping, alive, stranger = (make([tag]) for tag in (TAG, TAG, TAG, TAG, "other"))
    set_state(client, alive, Pending(), Running(), Crashed())
    for _ in range(3):  # taken for dead, as when the server was away, but it lives
        time.sleep(1)
        beat(client, alive, TAG)
    for run in (killed, stranger):
        set_state(client, run, Pending(), Running())
        beat(client, run, "other" if run == stranger else TAG)
    install_automations(SHORT)  # `cudd serve` starts again at once: what the server waits for is still waited for
    set_state(client, taken, Pending())
    set_state(client, stopping, Pending(), Running(), Cancelling())

    wait_for(lambda: [name_of(client, run) for run in (killed, taken)] == ["AwaitingRetry"] * 2)
    states = client.read_flow_run_states(killed)
    assert [state.name for state in states][-3:] == ["Running", "Crashed", "AwaitingRetry"]
    assert "No heartbeat for 10 s" in str(states[-2].message)
    assert (states[-1].timestamp - states[-2].timestamp) >= SHORT.rest
    assert name_of(client, stopping) == "Cancelled"
    assert name_of(client, stranger) == "Running"
    assert name_of(client, alive) == "Crashed"

    set_state(client, killed, Pending(), Running(), Crashed())
    wait_for(lambda: name_of(client, killed) == "Failed")
    assert "Crashed 2 times" in str(client.read_flow_run(killed).state.message)  # type: ignore[union-attr]


def run_maker(client: SyncPrefectClient) -> Callable[[list[str]], UUID]:
    """Runs of a deployment: others cannot be put back into a queue."""
    from prefect import flow

    @flow(name=f"silent-{uuid4().hex[:6]}")
    def silent() -> None: ...

    flow_id = client.create_flow(silent)
    deployment = client.create_deployment(flow_id, "silent", enforce_parameter_schema=False)
    return lambda tags: client.create_flow_run_from_deployment(deployment, tags=tags).id


def set_state(client: SyncPrefectClient, run: UUID, *states: State[None]) -> None:
    for state in states:
        client.set_flow_run_state(run, state, force=True)


def name_of(client: SyncPrefectClient, run: UUID) -> str | None:
    return client.read_flow_run(run).state_name


def beat(client: SyncPrefectClient, run: UUID, tag: str) -> None:
    """Send what `prefect.flow_engine` sends every 30 s."""
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "prefect.flow-run.heartbeat",
        "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        "related": [{"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}],
    }
    client.request("POST", "/events", json=[event]).raise_for_status()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the automations did not act in time"
        time.sleep(0.5)
