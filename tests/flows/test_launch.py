"""What a run shows in a terminal: a bar for every stage that computes, and lines above the bars."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator

import pytest
from rich.console import Console
from rich.progress import Progress

from cudd_core.progress import CONTINUED
from flows.launch import _Bars, _console
from tasks.progress import Reporter, draw_on


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_bars() -> Iterator[None]:
    yield
    draw_on(None)


def test_lines_that_no_bar_replaces_are_shown_above_the_bars(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without them, a run that waits for another process shows nothing for hours."""
    caplog.set_level(logging.INFO, "cudd")  # as every run sets it
    for name, value in {"TERM": "xterm", "COLUMNS": "200"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    reporter = Reporter("squeeze convnet3")
    with _console() as draw:
        draw_on(draw)
        reporter.started()
        for name in ("prepare", "caching", "cancel"):
            logging.getLogger(f"cudd.{name}").info("said by %s", name)
        reporter(230, 1000, {CONTINUED: 230})
        reporter.close()
    shown = terminal.getvalue()
    assert all(f"said by {name}\n" in shown for name in ("prepare", "caching", "cancel"))
    assert "squeeze convnet3: continues from a checkpoint, after 230 of 1000\n" in shown
    assert "started" not in shown, "bars and lines at once"


def test_stages_of_one_title_have_a_bar_each() -> None:
    """CUDD and a baseline synthesise slices of the same classes side by side."""
    title = "synthesize slices 0-2, classes 0-9"
    bars = Progress(console=Console(file=io.StringIO()))
    draw_on(_Bars(bars))
    ours, theirs = Reporter(title), Reporter(title)
    for reporter, done in ((ours, 1), (theirs, 3)):
        reporter.started()
        reporter(done, 4, {})

    def drawn() -> list[tuple[str, float]]:
        return [(bar.description, bar.completed) for bar in bars.tasks]

    assert drawn() == [(title, 1), (title, 3)]
    ours.close()
    assert drawn() == [(title, 3)]
    theirs(4, 4, {})
    theirs.close()
    assert drawn() == []
