from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from uuid import UUID

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from cudd_core.errors import Cancelled
from cudd_core.progress import CONTINUED
from tasks import progress
from tasks.progress import Reporter, check_not_stopped, draw_on, stop_requested

Call = tuple[str, float, int, dict[str, float]]


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    yield
    draw_on(None)


@pytest.fixture
def calls() -> list[Call]:
    drawn: list[Call] = []

    def sink(reporter: Reporter, done: float, total: int, metrics: Mapping[str, float]) -> None:
        drawn.append((reporter.title, done, total, dict(metrics)))

    draw_on(sink)
    return drawn


def test_a_stop_is_seen_at_the_next_step(calls: list[Call]) -> None:
    reporter = Reporter("synthesize")
    reporter(1, 10, {})
    stop_requested.set()
    with pytest.raises(Cancelled, match=r"synthesize was stopped\."):
        reporter(2, 10, {})
    with pytest.raises(Cancelled, match=r"relabel was stopped\."):
        check_not_stopped("relabel")
    assert calls == [("synthesize", 1, 10, {})]
    stop_requested.clear()
    reporter(2, 10, {})


def test_a_sink_gets_every_step_and_the_end(calls: list[Call], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cudd")
    reporter = Reporter("train student 1")
    reporter.started()
    reporter(1, 2, {"loss": 0.5})
    reporter(2, 2, {"loss": 0.25})
    reporter.close()
    assert calls == [
        ("train student 1", 1, 2, {"loss": 0.5}),
        ("train student 1", 2, 2, {"loss": 0.25}),
        ("train student 1", 1, 1, {}),
    ]
    assert not caplog.records, "bars and lines at once"


def test_what_was_reused_draws_nothing(calls: list[Call]) -> None:
    Reporter("squeeze").close()
    assert calls == []


def test_lines_are_few_and_say_how_far(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cudd")
    reporter = Reporter("squeeze convnet3")
    reporter.started()
    for epoch in range(1, 100):
        reporter(epoch, 200, {"epoch": epoch, "loss": 1.0})
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    reporter(100, 200, {"epoch": 100.0, "loss": 0.123456})
    reporter(100.5, 200, {})
    reporter.close()
    assert [record.getMessage() for record in caplog.records] == [
        "squeeze convnet3: started",
        "squeeze convnet3: 100/200 (50%), loss 0.1235",
        "squeeze convnet3: 100/200 (50%), loss 0.1235",
    ]


def test_a_line_says_once_that_work_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A Ray worker repeats it with every report, and another worker may take over from a later checkpoint."""
    caplog.set_level(logging.INFO, "cudd")
    reporter = Reporter("train network distilled convnet3 #1")
    reporter.started()
    reporter(230, 1000, {CONTINUED: 230})
    reporter(231.5, 1000, {CONTINUED: 230, "loss": 0.5})
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    reporter(240, 1000, {CONTINUED: 230, "loss": 0.5})
    reporter(260.5, 1000, {CONTINUED: 260})
    title = "train network distilled convnet3 #1"
    assert [record.getMessage() for record in caplog.records] == [
        f"{title}: started",
        f"{title}: continues from a checkpoint, after 230 of 1000",
        f"{title}: 240/1000 (24%), loss 0.5",
        f"{title}: continues from a checkpoint, after 260 of 1000",
        f"{title}: 260/1000 (26%)",
    ]


def test_a_server_that_is_away_is_told_once_and_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Prefect's own client, towards a port that nobody listens on."""
    monkeypatch.setattr(progress, "UI_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_away_since", -progress.AWAY_SECONDS)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        for title in ("synthesize", "relabel"):
            reporter = Reporter(title)
            reporter.started()
            for step in range(1, 4):
                reporter(step, 3, {})
            reporter.close()
    lacking = [record.getMessage() for record in caplog.records if "lack" in record.getMessage()]
    assert len(lacking) == 1 and "'synthesize'" in lacking[0]


def test_a_server_that_is_back_is_shown_progress_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "UI_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_away_since", time.monotonic() - progress.AWAY_SECONDS)
    shown = list[float]()

    def create(*, progress: float, description: str) -> UUID:
        shown.append(progress)
        return UUID(int=7)

    monkeypatch.setattr(progress, "create_progress_artifact", create)
    monkeypatch.setattr(progress, "update_progress_artifact", lambda **fields: shown.append(fields["progress"]))
    reporter = Reporter("synthesize")
    reporter.started()
    reporter(1, 4, {})
    reporter(2, 4, {})
    assert shown == [25.0, 50.0]
