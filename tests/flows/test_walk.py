"""A run is followed by what it left when it began: its data and its teachers' files may be gone."""

from __future__ import annotations

import gc
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console, RenderableType
from safetensors.torch import save_file

from cudd_core.codec import read_record
from cudd_core.errors import ConfigError, ModelError
from cudd_core.models.registry import build_network
from cudd_core.records import Verdicts
from flows import inventory
from flows.beginning import Beginning, Walked, check_unchanged, own_outputs, read_beginning, walk_run
from flows.checks import check_data
from flows.prepare import CHANGES_TAG, RECIPE_FILE, log_recipe
from flows.recipe import Recipe
from flows.recipes import apply_overrides, get_recipe
from flows.walk import Part
from tasks.garbage import Garbage, find_garbage, remove_garbage
from tasks.ledger import Attempt
from tasks.refs import Ref
from tasks.squeeze import file_digest
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("no_store_variables")
SMALL = ("data.image_size=8", "teacher.arch=convnet1-w4", "schedule.ipc=2", "schedule.step=1", "synthesis.jitter=1")


@pytest.fixture
def store(make_home: Callable[[str], Path]) -> Store:
    return Store.from_environment(make_home("walk")).connect()


def loading(weights: Path) -> Recipe:
    return apply_overrides(get_recipe("digits"), [*SMALL, "teacher.source=file", f"teacher.weights={weights}"])


def test_a_run_is_followed_without_its_teacher_s_file(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    save_file(build_network("convnet1-w4", 10, 1, 8, seed=0).state_dict(), file)
    recipe = loading(file)
    data = check_data(recipe)
    run = store.pipelines.start("distill", {}, {})
    log_recipe(store, run, recipe, data, {str(file): file_digest(recipe.teacher)})
    before = Beginning(recipe, data).parts(store)
    file.write_bytes(b"another network")
    assert walk_run(run, store).parts == before != Beginning(recipe, data).parts(store)
    file.unlink()
    assert walk_run(run, store) == Walked(recipe, before, historic=False)
    with pytest.raises(ModelError, match="there is no file"):
        Beginning(recipe, data).parts(store)


def test_a_teacher_s_file_that_has_changed_is_not_taken_for_what_it_was(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "teacher.safetensors"
    file.write_bytes(b"one network")
    recipe = loading(file)
    beginning = Beginning(recipe, check_data(recipe), {str(file): file_digest(recipe.teacher)})
    check_unchanged(beginning, "run")
    file.write_bytes(b"another network")
    with pytest.raises(ConfigError, match=rf"^{file}: not what it was when run run began"):
        check_unchanged(beginning, "run")


RECORD = Verdicts(torch.arange(2), torch.zeros(2, dtype=torch.int32))


def part(stage: str, key: str, standing: str = "stored") -> Part:
    return Part("", stage, stage, standing, Ref(stage, key * 64, "", key * 64, 0), None)


def test_a_run_has_outputs_of_its_own_only_where_its_set_is_another(store: Store) -> None:
    """What it never used, what is missing now, and what is made of the set say nothing about that."""
    run = store.pipelines.start("distill", {}, {})
    refs = [
        store.commit(key * 64, stage, RECORD)
        for key, stage in (("a", "squeeze"), ("b", "select"), ("c", "assemble"), ("d", "train_network"))
    ]
    store.pipelines.link(run, *refs)
    same = [part("squeeze", "a"), part("select", "b"), part("assemble", "c")]
    another = [part("squeeze", "a"), part("select", "f")]

    def own(*parts: Part) -> list[str]:
        return sorted(each.stage for each in own_outputs(run, store, store.ledger(), parts))

    assert own(*another) == []  # it goes on, or was stopped: links are missing
    store.pipelines.finish(run)
    assert own(*another) == ["assemble", "select", "squeeze", "train_network"]
    assert own(*same, part("train_network", "d")) == own(*same, part("train_network", "f")) == []
    assert own(part("features", "f"), *same) == []
    assert own(part("squeeze", "a", "missing"), part("select", "f", "missing")) == []


def test_a_run_whose_output_was_deleted_is_no_run_of_another_version(store: Store) -> None:
    """As `cudd gc` does with one that was damaged, if the run that made it was deleted; or a person in MLflow."""
    run = store.pipelines.start("distill", {}, {})
    kept, gone, damaged = (store.commit(key * 64, "select", RECORD) for key in "abe")
    store.commit("c" * 64, "select", RECORD)  # another run's
    store.pipelines.link(run, kept, gone, damaged)
    store.pipelines.finish(run)
    store.client.delete_run(gone.run_id)
    store.invalidate(damaged, "a bit flipped")
    parts = [part("select", "a"), part("select", "b", "missing"), part("assemble", "d", "missing")]
    assert own_outputs(run, store, store.ledger(), parts) == ()
    parts[1] = part("select", "f", "missing")
    own = own_outputs(run, store, store.ledger(), parts)
    assert {each.ref.key: each.standing for each in own} == {kept.key: "stored", damaged.key: "missing"}
    assert {each.ref.digest for each in own if each.standing == "stored"} == {kept.digest}


def test_what_was_made_again_with_the_same_result_is_the_run_s_own_also_when_the_first_is_gone(store: Store) -> None:
    """`--force-stages` replaces outputs, and `gc` then removes those that a finished run refers to."""
    run = store.pipelines.start("distill", {}, {})
    refs = [
        store.commit(key * 64, stage, RECORD)
        for key, stage in (("a", "squeeze"), ("b", "select"), ("e", "select"), ("c", "assemble"))
    ]
    store.pipelines.link(run, *refs)
    store.pipelines.finish(run)
    again = store.begin("b" * 64, "select", tags={"cudd.pipeline_run": run})
    store.commit("b" * 64, "select", RECORD, attempt=again, replaces=refs[1])
    remove_garbage(store, find_garbage(store, 0))
    ledger = store.ledger()
    assert {each.run_id for each in ledger.attempts} == {*(ref.run_id for ref in refs), again} - {refs[1].run_id}
    parts = [part("squeeze", "a"), part("select", "b"), part("select", "e"), part("assemble", "c")]
    assert own_outputs(run, store, ledger, parts) == ()


def test_the_work_of_a_killed_run_is_missing_and_not_running(make_home: Callable[[str], Path]) -> None:
    home = make_home("killed")
    recipe = apply_overrides(get_recipe("digits"), SMALL)
    working = Store.from_environment(home).connect()
    run = working.pipelines.start("distill", {}, {})
    log_recipe(working, run, recipe, check_data(recipe), {})
    key = walk_run(run, working).parts[0].ref.key
    working.begin(key, "squeeze", tags={"cudd.pipeline_run": run})

    def standings(store: Store) -> list[str]:
        inventory.status(run, store)
        return [part.standing for part in walk_run(run, store).parts[:2]]

    assert standings(Store.from_environment(home)) == ["running", "missing"]
    # The run's lock goes with its store, as with its process.
    del working
    gc.collect()
    assert standings(Store.from_environment(home)) == ["missing", "missing"]


def test_status_lists_twenty_and_counts_the_rest(make_home: Callable[[str], Path]) -> None:
    """Of an ImageNet run, thousands may have failed or be missing."""
    recipe = apply_overrides(get_recipe("digits"), [*SMALL, "evaluation.seeds=30"])
    store = Store.from_environment(make_home("long")).connect()
    run = store.pipelines.start("distill", {}, {})
    log_recipe(store, run, recipe, check_data(recipe), {})
    parts = walk_run(run, store).parts
    for part in parts[:25]:
        attempt = store.begin(part.ref.key, part.stage, tags={"cudd.pipeline_run": run})
        store.abandon(attempt, ValueError("no luck"))
    standings = Counter(part.standing for part in walk_run(run, store).parts)
    console = Console(width=200)
    with console.capture() as capture:
        console.print(inventory.status(run, store))
    said = capture.get()
    for standing in ("failed", "missing"):
        assert said.count(f"\n{standing}: ") == 20
        assert f"… and {standings[standing] - 20} more" in said


def shown(renderable: RenderableType) -> list[list[str]]:
    """The words of each line, without the lines of tables."""
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    lines = [line.replace("│", " ").split() for line in capture.get().splitlines()]
    return [words for words in lines if words and words[0].isascii()]


def test_a_plan_says_how_much_of_it_is_stored(store: Store) -> None:
    recipe = apply_overrides(get_recipe("digits"), SMALL)
    parts = Beginning(recipe, check_data(recipe)).parts(store)
    teacher, *_ = parts
    assert teacher.stage == "squeeze"
    tasks = Counter(part.stage for part in parts)

    def rows() -> dict[str, list[int]]:
        lines = shown(inventory.hits(recipe, store))
        return {words[0]: list(map(int, words[1:])) for words in lines if len(words) == 4 and words[1].isdigit()}

    assert rows() == {stage: [count, 0, count] for stage, count in tasks.items()}
    attempt = store.begin(teacher.ref.key, "squeeze")
    assert rows()["squeeze"] == [1, 0, 1]
    store.abandon(attempt, ValueError("no luck"))
    assert rows()["squeeze"] == [1, 0, 1]
    store.commit(teacher.ref.key, "squeeze", RECORD)
    assert rows()["squeeze"] == [1, 1, 0]


def test_a_part_is_fetched_by_its_name_with_a_slash_too_and_by_no_piece_of_a_word(store: Store, tmp_path: Path) -> None:
    """As shells complete what was fetched before."""
    recipe = apply_overrides(get_recipe("digits"), SMALL)
    run = store.pipelines.start("distill", {}, {})
    log_recipe(store, run, recipe, check_data(recipe), {})
    teacher = walk_run(run, store).parts[0]
    store.commit(teacher.ref.key, teacher.stage, RECORD)
    for name in ("squeeze", "squeeze/", teacher.name, f"{teacher.name}/"):
        assert [part.name for part in inventory.fetch(run, name, tmp_path, store)] == [teacher.name]
        assert isinstance(read_record(tmp_path / teacher.name), Verdicts)
    for name in ("squ", teacher.name[:-1], ""):
        with pytest.raises(ConfigError, match="has no part"):
            inventory.fetch(run, name, tmp_path, store)
    with pytest.raises(ConfigError, match=r"[1-9] of [1-9] parts are not stored, the first is curriculum-1/select"):
        inventory.fetch(run, "curriculum-1/select", tmp_path, store)


def test_garbage_is_told_by_kind_and_stage() -> None:
    now = time.time()

    def attempt(stage: str, days: float, megabytes: float | None = None, ended: bool = True) -> Attempt:
        ref = None if megabytes is None else Ref(stage, "a" * 64, "run", "a" * 64, int(megabytes * 1e6))
        times = (now - 86400 * 9, now - 86400 * days) if ended else (now - 86400 * days, None)
        return Attempt("run", "a" * 64, stage, stage, "KILLED", *times, "", "", ref, "")

    garbage = Garbage(
        abandoned=(attempt("select", 3.0), attempt("select", 2.5, ended=False), attempt("relabel", 1.0)),
        unreferenced=(attempt("select", 4.0, 1.5), attempt("select", 6.0, 2.0)),
        local=(),
        checkpoints=(Path("nowhere"),),
    )
    lines = [" ".join(words) for words in shown(inventory.garbage_table(garbage, removed=False))]
    assert lines[1:] == [
        "abandoned attempts relabel 1 1.0 days ago",
        "abandoned attempts select 2 2.5 days ago",
        "outputs of no run select 2 3.5 4.0 days ago",
        "checkpoints 1",
        "3.5 MB of outputs, local copies and checkpoints. Nothing was removed: add --yes.",
    ]
    assert "Would be removed" in lines[0]
    done = replace(garbage, going_on=("active",))
    lines = [" ".join(words) for words in shown(inventory.garbage_table(done, removed=True))]
    assert lines[0].startswith("Removed") and lines[-2].endswith("checkpoints.")
    assert lines[-1].startswith("Finished outputs and decoded images stay while runs go on: active.")


def test_a_recipe_of_another_version_is_said_to_be_one(store: Store, tmp_path: Path) -> None:
    run = store.pipelines.start("distill", {}, {})
    (tmp_path / RECIPE_FILE).write_text(json.dumps({"config": {"name": "old", "gone": 1}, "data": {}}))
    store.pipelines.log_files(run, tmp_path)
    with pytest.raises(ConfigError, match=rf"recipe of run {run} is not one of this version.\nUnknown key 'gone'"):
        read_beginning(run, store)


def test_what_is_no_pipeline_run_is_the_users_mistake(store: Store) -> None:
    with pytest.raises(ConfigError, match="has no run 'nope'"):
        read_beginning("nope", store)
    stage = store.begin("a" * 64, "select")
    comparison = store.pipelines.start("compare digits", {}, {})
    for run, name in ((stage, "select"), (comparison, "compare digits")):
        with pytest.raises(ConfigError, match=rf"Run {run} \({name}.*\) distilled nothing itself"):
            read_beginning(run, store)


def test_the_latest_runs_are_listed_without_those_nested_in_them(store: Store) -> None:
    first = store.pipelines.start("distill digits", {}, {})
    nested = store.pipelines.start("curriculum 1", {}, {}, parent=first)
    store.pipelines.finish(first, "FAILED")
    time.sleep(0.002)  # MLflow counts in milliseconds
    second = store.pipelines.start("compare digits", {}, {})
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(inventory.latest(store))
    rows = console.export_text().splitlines()
    assert [row.split()[:2] for row in rows[1:3]] == [[second, "running"], [first, "failed"]]
    assert nested not in "".join(rows)


def test_a_run_s_line_says_when_it_began_and_how_long_it_took_or_has_been_going_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(number: int, began: datetime, took: float | None, changes: str = "") -> Any:
        start = round(1000 * began.timestamp())
        end = None if took is None else start + round(1000 * took)
        info = {"run_id": f"{number:032x}", "status": "FINISHED" if end else "RUNNING", "run_name": "distill digits"}
        tags = {CHANGES_TAG: changes} if changes else {}
        return SimpleNamespace(
            info=SimpleNamespace(**info, start_time=start, end_time=end), data=SimpleNamespace(tags=tags)
        )

    june = datetime(2026, 6, 1, 12, 30)
    monkeypatch.setattr(inventory, "time", SimpleNamespace(time=lambda: june.timestamp() + 90_001))
    found = [run(0, june, None), run(1, june, 3723.4, "seed=3"), *(run(number, june, 59.6) for number in range(2, 23))]
    pipelines = SimpleNamespace(end_dead=lambda: None, outermost=lambda: found)
    *rows, caption = shown(inventory.latest(cast(Store, SimpleNamespace(pipelines=pipelines, display_uri="here"))))[1:]
    assert rows[0][1:7] == ["running", "06-01", "12:30", "1", "day,", "1:00:01"]
    assert rows[1] == [f"{1:032x}", "finished", "06-01", "12:30", "1:02:03", "distill", "digits", "seed=3"]
    assert rows[2][4:] == ["0:01:00", "distill", "digits"]
    assert len(rows) == 20 and caption == ["23", "runs", "in", "here"]
