"""What `cudd status`, `cudd fetch` and `cudd gc` show and do."""

from __future__ import annotations

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from cudd_core.errors import ConfigError, ResourceError
from flows.beginning import Beginning, walk_run
from flows.catalogue import did_you_mean
from flows.checks import check_data
from flows.prepare import CHANGES_TAG
from flows.recipe import Recipe
from flows.walk import Part, made_by
from tasks.garbage import Garbage
from tasks.store import Store

_STANDINGS = {"reused": "cyan", "done": "green", "running": "yellow", "failed": "red", "missing": "dim"}
_LISTED = 20
_ANOTHER = (
    "Made with another version of this software, or stages were made again with another result: the same command would "
    "now make another set. The table shows what the run itself used; fetch and export give that."
)


def standing(part: Part, run: str) -> str:
    """Return `done` (made by this run), `reused` (made by another), `running`, `failed` or `missing`."""
    if part.standing == "stored":
        return "done" if made_by(part, run) else "reused"
    return part.standing


def status(run: str, store: Store, blocks: bool = False) -> Group:
    """Return a table, curriculum × stage, of how many tasks are in which state, then what failed and what is missing.

    `blocks`: add a line for every task below it. Runs of this home whose process was killed are first marked as ended.

    Raises:
        ConfigError: no such run.
    """
    store.pipelines.end_dead()
    walked = walk_run(run, store)
    parts = walked.parts
    cells: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for part in parts:
        cells[part.group, part.stage][standing(part, run)] += 1
    table = Table(title=f"{walked.recipe.name}, run {run}", title_justify="left")
    for heading in ("part of the run", "stage", "tasks"):
        table.add_column(heading, justify="right" if heading == "tasks" else "left")
    for name, colour in _STANDINGS.items():
        table.add_column(name, justify="right", style=colour)
    group = None
    for (part_group, stage), counts in sorted(cells.items(), key=lambda cell: _order(cell[0][0])):
        if group is not None and part_group != group:
            table.add_section()
        shown = "" if part_group == group else part_group or "whole run"
        group = part_group
        numbers = [str(counts[name]) if counts[name] else "" for name in _STANDINGS]
        table.add_row(shown, stage, str(counts.total()), *numbers)
    below = [_tasks(parts, run)] if blocks else []
    lines = [Text(_ANOTHER)] if walked.historic else []
    lines += _listed([f"failed: {part.name}: {_reason(part)}" for part in parts if part.standing == "failed"], "red")
    if not blocks:
        lines += _listed([f"missing: {part.name}" for part in parts if part.standing == "missing"], "dim")
    return Group(table, *below, *lines)


def _listed(lines: Sequence[str], style: str) -> list[Text]:
    more = [f"… and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return [Text(line, style=style) for line in (*lines[:_LISTED], *more)]


def _tasks(parts: Sequence[Part], run: str) -> Table:
    """Return a table with a line for every task; each line is complete, so that `grep` can pick lines out."""
    table = Table(box=None, pad_edge=False)
    for heading in ("part of the run", "stage", "block", "standing"):
        table.add_column(heading, no_wrap=heading != "block")
    for part in sorted(parts, key=lambda part: _order(part.group)):
        words = part.name.split("/")[1 if part.group else 0 :]
        stands = standing(part, run)
        table.add_row(part.group or "whole run", words[0], "/".join(words[1:]), Text(stands, style=_STANDINGS[stands]))
    return table


def latest(store: Store) -> Table:
    """Return the latest runs, without nested ones. Runs whose process was killed are first marked as ended."""
    store.pipelines.end_dead()
    runs = store.pipelines.outermost()
    table = Table(box=None, pad_edge=False, caption=f"{len(runs)} runs in {store.display_uri}", caption_justify="left")
    for heading in ("run", "status", "began", "took", "what"):
        table.add_column(heading, no_wrap=heading != "what", justify="right" if heading == "took" else "left")
    for run in runs[:_LISTED]:
        began = datetime.fromtimestamp(run.info.start_time / 1000)
        until = run.info.end_time or 1000 * time.time()
        took = timedelta(seconds=round((until - run.info.start_time) / 1000))
        what = Text(run.info.run_name).append(f" {run.data.tags.get(CHANGES_TAG, '')}".rstrip(), style="dim")
        table.add_row(run.info.run_id, run.info.status.lower(), f"{began:%m-%d %H:%M}", str(took), what)
    return table


def hits(recipe: Recipe, store: Store) -> Group:
    """Return how much of a run of `recipe` is already stored, by stage.

    Raises:
        UserError: the data is not here, or the recipe does not fit it.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for part in Beginning(recipe, check_data(recipe)).parts(store):
        counts[part.stage][part.standing] += 1
    table = Table(title="Of these, with this data, in the store", title_justify="left")
    for heading in ("stage", "tasks", "stored", "to be made"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage, found in counts.items():
        table.add_row(stage, str(found.total()), str(found["stored"]), str(found.total() - found["stored"]))
    return Group(table, Text(f"Store: {store.display_uri}. Tasks that several parts of a run share are counted once."))


def fetch(run: str, name: str, to: Path, store: Store) -> tuple[Part, ...]:
    """Verify the files of a run's stored parts and copy them to folders under `to`; return the parts.

    `name` is one part's name (`curriculum-1/synthesize/slices-0-4-classes-0-9`) or the beginning of several
    (`curriculum-1/synthesize`, `curriculum-1`, `assemble`).

    Raises:
        ConfigError: no part has that name, or one is not stored.
        ResourceError: `to` cannot be written.
    """
    parts = walk_run(run, store).parts
    wanted = [part for part in parts if f"{part.name}/".startswith(f"{name.rstrip('/')}/")]
    if not wanted:
        near = did_you_mean(name, [part.name for part in parts])
        ordered = sorted(parts, key=lambda part: _order(part.group))
        heads = dict.fromkeys("/".join(part.name.split("/")[: 2 if part.group else 1]) for part in ordered)
        raise ConfigError(f"Run {run} has no part {name!r}.{near} Parts: {', '.join(heads)}.")
    lacking = [part.name for part in wanted if part.standing != "stored"]
    if lacking:
        raise ConfigError(
            f"{len(lacking)} of {len(wanted)} parts are not stored, the first is {lacking[0]}. Run the recipe to its "
            f"end first; `cudd status {run}` shows what is missing."
        )
    for part in wanted:
        folder = to / part.name
        try:
            shutil.copytree(store.fetch_folder(part.ref), folder, dirs_exist_ok=True)
        except (OSError, shutil.Error) as error:
            raise ResourceError(f"{folder} cannot be written: {error}") from error
    return tuple(wanted)


def garbage_table(garbage: Garbage, removed: bool) -> Group:
    """Return a table of what was removed, or would be, by stage."""
    table = Table(title="Removed" if removed else "Would be removed", title_justify="left")
    for heading in ("what", "stage", "number", "MB", "newest"):
        table.add_column(heading, justify="left" if heading in ("what", "stage") else "right")
    for what, attempts in (("abandoned attempts", garbage.abandoned), ("outputs of no run", garbage.unreferenced)):
        for stage in sorted({attempt.stage for attempt in attempts}):
            some = [attempt for attempt in attempts if attempt.stage == stage]
            megabytes = sum(attempt.ref.bytes for attempt in some if attempt.ref) / 1e6
            days = (time.time() - max(attempt.ended or attempt.started for attempt in some)) / 86400
            size = f"{megabytes:.1f}" if what.startswith("outputs") else ""
            table.add_row(what, stage, str(len(some)), size, f"{days:.1f} days ago")
    for what, folders in (("local copies", garbage.local), ("checkpoints", garbage.checkpoints)):
        if folders:
            table.add_row(what, "", str(len(folders)), "", "")
    total = f"{garbage.bytes / 1e6:.1f} MB of outputs, local copies and checkpoints."
    lines = [Text(total if removed else f"{total} Nothing was removed: add --yes.")]
    if garbage.going_on:
        runs = ", ".join(garbage.going_on[:_LISTED])
        stay = f"Finished outputs and decoded images stay while runs go on: {runs}."
        lines.append(Text(f"{stay} Delete in MLflow's pages what is dead."))
    return Group(table, *lines)


def _order(group: str) -> tuple[int, str, int]:
    """Return a sort key: first the whole run, then curricula, then baselines, each by number."""
    name, _, number = group.rpartition(" ")
    return (1 if name == "curriculum" else 2) if group else 0, name, int(number) if number.isdigit() else 0


def _reason(part: Part) -> str:
    return part.attempt.reason if part.attempt is not None else ""
