"""The command line: exit codes, messages that name the field or the file, and what stays untouched on a mistake."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cudd_core.errors import Cancelled, ConfigError, StoreError
from flows import closing, option_lists
from flows.catalogue import recipe_names
from flows.cli import app
from flows.closing import accuracy_table
from flows.result_files import copy_files
from tasks.store import Store

EXPORT = ("--format", "hf", "--to", "out")
SPREAD = {"mean": 0.5, "std": 0.01, "n": 3}
SUMMARY: dict[str, Any] = {
    "recipe": "digits",
    "mlflow_run_id": "0123",
    "report": "report.html",
    "picture": "report.png",
    "reused_tasks": 2,
    "computed_tasks": 31,
    "dataset": {"digest": "f" * 64, "images": 100, "classes": 10, "image_bytes": 25600, "label_bytes": 400000},
    "accuracy": {"teacher": 0.99, "distilled": {"convnet3": SPREAD}, "random": {"convnet3": SPREAD}},
    "seconds": {"squeeze": 60.0, "train_network": 30.0},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CUDD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # no server is started
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


def cudd(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_recipes_lists_all_of_them() -> None:
    result = cudd("recipes")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in recipe_names())


def test_help_and_recipes_import_nothing_heavy() -> None:
    heavy = {"torch", "prefect", "mlflow", "pyarrow", "matplotlib", "sklearn"}
    for words in (["--help"], ["recipes"]):
        program = (
            "import sys, flows.cli\n"
            f"try: flows.cli.app({words})\n"
            "except SystemExit: pass\n"
            "print(sorted(sys.modules), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert not heavy & {name.strip(" '") for name in done.stderr.strip("[]\n").split(",")}


def test_show_prints_the_overridden_recipe() -> None:
    result = cudd("show", "digits", "--set", "schedule.ipc=20")
    assert result.exit_code == 0
    assert "ipc: 20" in result.stdout


def test_plan_needs_no_data_and_leaves_nothing(home: Path) -> None:
    result = cudd("plan", "imagenet21k-ipc10")
    assert result.exit_code == 0
    assert "10,450 classes" in result.stdout
    assert not home.exists()


MISTAKES = [
    (["no-such-recipe"], "no-such-recipe"),
    (["digits", "--set", "schedule.ipx=3"], "schedule.ipx"),
    (["digits", "--set", "student.temperature=0"], "student.temperature"),
    (["digits", "--set", "schedule.ipc=0"], "schedule.ipc"),
    (["digits", "--set", "schedule.block_size=0"], "schedule.block_size"),
    (["digits", "--set", "compute.amp=fp8"], "compute.amp"),
    (["corrupt.yaml"], "corrupt.yaml, line 2"),
    (["missing.yaml"], "missing.yaml"),
]


@pytest.mark.parametrize("command", ["show", "plan", "distill"])
@pytest.mark.parametrize(("words", "named"), MISTAKES)
def test_a_mistake_is_one_message_on_stderr_and_exit_code_2(
    command: str, words: list[str], named: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corrupt.yaml").write_text("extends: digits\nschedule: {ipc: 3")
    result = cudd(command, *words)
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stderr.startswith("Error: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--force-stages", "synthesise"], "synthesize"),
        (["--runner", "cluster"], "cluster"),
        (["--summary", "."], "--summary"),
    ],
)
def test_distill_refuses_bad_options_before_anything_is_done(words: list[str], named: str, home: Path) -> None:
    result = cudd("distill", "digits", *words)
    assert result.exit_code == 2
    assert named in result.stderr
    assert not home.exists()


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = cudd("distill", "digits", "--set", "compute.device=cuda")
    assert result.exit_code == 2
    assert "compute.device" in result.stderr
    assert not home.exists()


def test_an_unwritable_home_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUDD_HOME", str(tmp_path / "file" / "home"))
    result = cudd("distill", "digits")
    assert result.exit_code == 2
    assert "CUDD_HOME" in result.stderr


def replaced(monkeypatch: pytest.MonkeyPatch, outcome: dict[str, Any] | BaseException) -> None:
    def run_flow(*_: object, **__: object) -> dict[str, Any]:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr("flows.launch.run_flow", run_flow)
    monkeypatch.setattr("flows.launch.keep_report", lambda *_: [])


def test_distill_writes_the_summary_and_prints_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replaced(monkeypatch, SUMMARY)
    result: Result = cudd("distill", "digits", "--summary", str(tmp_path / "new" / "summary.json"))
    assert result.exit_code == 0
    assert json.loads((tmp_path / "new" / "summary.json").read_text()) == SUMMARY
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["summary.json"]
    assert "50.0 ± 1.0" in result.stdout
    assert "31 computed, 2 reused" in result.stdout


def test_a_summary_goes_through_pipes_and_links_and_replaces_neither(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replaced(monkeypatch, SUMMARY)
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "elsewhere" / "file"
    file.parent.mkdir()
    file.write_text("old")
    link.symlink_to(file)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    for place in (pipe, link):
        assert cudd("distill", "digits", "--summary", str(place)).exit_code == 0
    assert json.loads(os.read(reader, 1 << 16)) == SUMMARY == json.loads(file.read_text())
    os.close(reader)
    assert pipe.is_fifo() and link.is_symlink() and list(file.parent.iterdir()) == [file]


def test_files_are_copied_into_a_folder_that_stays_as_it_is(tmp_path: Path) -> None:
    results, to = tmp_path / "results", tmp_path / "to"
    for folder in (results, to):
        (folder / "figures").mkdir(parents=True)
    (results / "figures" / "a.png").write_bytes(b"new")
    (to / "figures" / "mine.png").write_bytes(b"mine")
    to.chmod(0o2777)
    copy_files(results, to)
    assert to.stat().st_mode & 0o7777 == 0o2777
    assert {path.name for path in (to / "figures").iterdir()} == {"a.png", "mine.png"}


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (StoreError("the store is away"), 1, "the store is away"),
        (RuntimeError("a bug"), 1, "RuntimeError: a bug"),
        (Cancelled("stop"), 130, "goes on"),
        (KeyboardInterrupt(), 130, "goes on"),
    ],
)
def test_other_errors_have_their_exit_codes(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, message: str
) -> None:
    replaced(monkeypatch, error)
    result = cudd("distill", "digits")
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    replaced(monkeypatch, StoreError("the store is away"))
    assert isinstance(cudd("distill", "digits", "--debug").exception, StoreError)


def test_the_accuracy_table_has_a_row_a_network() -> None:
    assert accuracy_table(SUMMARY).row_count == 3


def test_ui_stop_without_servers_says_so() -> None:
    result = cudd("ui", "--stop")
    assert result.exit_code == 0
    assert "No servers" in result.stdout


def test_ui_stop_refuses_while_a_run_goes_on(home: Path) -> None:
    """Without its Prefect server, the run could neither be watched nor end in time."""
    pipelines = Store.from_environment().pipelines
    run = pipelines.start("distill", {}, {})
    refused = cudd("ui", "--stop")
    assert refused.exit_code == 2 and f"A run of {home} goes on" in refused.stderr
    assert cudd("ui", "--stop", "--force").exit_code == 0
    pipelines.finish(run)
    assert cudd("ui", "--stop").exit_code == 0


COMPARE_MISTAKES = [
    (["digit"], "Did you mean digits"),
    ([""], "at least one recipe"),
    (["digits,"], "a name is missing"),
    (["digits", "--ablation", "objectiv"], "Did you mean objective"),
    (["digits", "--vary", "synthesis.weight_adv=1"], "at least two different values"),
    (["digits", "--set", "schedule.ipx=1"], "schedule.ipx"),
    (["digits", "--ablation", "alpha-adv", "--vary", "synthesis.weight_adv=1,2"], "set twice"),
]


@pytest.mark.parametrize(("words", "message"), COMPARE_MISTAKES)
def test_compare_refuses_mistakes_before_anything_starts(words: list[str], message: str, home: Path) -> None:
    result = cudd("compare", *words)
    assert result.exit_code == 2 and message in result.stderr
    assert not home.exists()


def test_the_command_that_a_comparison_names_asks_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.compare import command_of

    asked: list[dict[str, Any]] = []

    def run_flow(name: str, parameters: dict[str, Any], *_: Any, **__: Any) -> Any:
        asked.append(parameters)
        raise ConfigError("it is known now")

    monkeypatch.setattr("flows.launch.run_flow", run_flow)
    ours = ["recipes", "overrides", "vary", "ablation", "repeats", "ranking", "full_data"]
    several = ["synthesis.weight_adv=1,0", "schedule.ipc=10,20"]
    for values in (
        [["digits"], [], [], "", 1, False, False],
        [["digits", "cifar10-ipc10"], ["evaluation.archs=convnet3,convnet2", "seed=3"], several, "", 1, True, False],
        [["digits"], ["data.root=/a b"], [], "objective", 3, False, True],
    ):
        program, *words = shlex.split(command_of(*values))
        assert program == "cudd" and "it is known now" in cudd(*words).stderr
        found = asked.pop()
        assert {name: found.pop(name) for name in ours} == dict(zip(ours, values, strict=True))
        assert found == {"baselines": [], "seeds": 0, "archs": [], "runner": "local"}, "settings name them"


def test_lists_of_options_have_no_empty_names_and_ranges_no_reverse() -> None:
    assert option_lists.words(" a, b,a ", "--arch") == ("a", "b")
    assert option_lists.words("", "--arch") == ()
    assert option_lists.numbers_of("1-3,5", "--severities") == [1, 2, 3, 5]
    for text in ("a,", ",a", "a,,b"):
        with pytest.raises(ConfigError, match=rf"--arch '{text}': a name is missing"):
            option_lists.words(text, "--arch")
    with pytest.raises(ConfigError, match="'5-1' ends before it begins"):
        option_lists.numbers_of("5-1", "--severities")


@pytest.mark.parametrize("job", ["evaluate", "robustness", "continual", "coverage"])
def test_what_can_be_no_run_is_refused_before_anything_starts(job: str, home: Path) -> None:
    result = cudd(job, "digits")
    assert result.exit_code == 2 and "RUN digits: neither a folder nor an MLflow run id" in result.stderr
    assert not home.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "my-sets/typo"), "RUN my-sets/typo: no MLflow run id"),
        (("status", "--blocks"), "--blocks shows the blocks of one run"),
        (("fetch", "42e", "squeeze"), "RUN 42e: no MLflow run id"),
        (("export", "my-sets/typo", "--format", "hf", "--to", "x"), "RUN my-sets/typo: neither a folder nor"),
        (("coverage", "0" * 32, "--beside", "typo"), "--beside typo: no MLflow run id"),
    ],
)
def test_what_can_be_no_run_is_not_looked_for(words: tuple[str, ...], message: str, home: Path) -> None:
    result = cudd(*words)
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
    assert not home.exists()


def test_the_beginning_of_an_id_is_enough_where_one_run_begins_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.prepare import CHANGES_TAG
    from tasks.store import Store

    home.mkdir()
    store = Store.from_environment(home).connect()
    changed = {CHANGES_TAG: "seed=1"}
    first, second = (store.pipelines.start(f"distill {name}", changed, {}) for name in ("one", "two"))
    for run in (first, second):
        store.pipelines.finish(run)
    assert "distill two seed=1" in cudd("status").stdout
    for run, other in itertools.permutations((first, second)):
        result = cudd("status", run[:12])
        assert run in result.stderr and other not in result.stderr and "distilled nothing itself" in result.stderr
    assert "begins so" in cudd("evaluate", "0123abcd" * 2).stderr
    monkeypatch.setattr(type(store.pipelines), "beginning_with", lambda *_: [first, second])
    assert f"2 runs begin so: {first}, {second}. Give more digits." in cudd("export", first[:4], *EXPORT).stderr


@pytest.mark.parametrize("words", [("coverage", "RUN"), ("coverage", ".", "--beside", "RUN"), ("evaluate", "RUN")])
def test_looking_for_a_run_s_id_leaves_prefect_to_be_told_its_server(words: tuple[str, ...], home: Path) -> None:
    # Prefect reads the server's address when it is imported; without one, a run goes to a server of Prefect's own.
    home.mkdir()
    run = Store.from_environment(home).connect().pipelines.start("distill one", {}, {})
    program = (
        "import sys, flows.cli, flows.launch\n"
        "def run_flow(*_, **__): sys.exit(f'imported: {\"prefect\" in sys.modules}')\n"
        "flows.launch.run_flow = run_flow\n"
        f"flows.cli.app({[run[:8] if word == 'RUN' else word for word in words]})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "imported: False" in done.stderr


def test_the_version() -> None:
    assert cudd("--version").stdout == f"cudd {version('cudd')}\n"


def test_what_is_printed_as_a_command_means_the_same_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDD_HOME", str(tmp_path / "a home"))
    home, program, *words = shlex.split(closing.command("ui --stop"))
    assert home == f"CUDD_HOME={tmp_path / 'a home'}"
    assert shutil.which(program)
    assert words == ["ui", "--stop"]
    monkeypatch.delenv("CUDD_HOME")
    assert shlex.split(closing.command("ui")) == [program, "ui"]


def test_compare_s_help_names_every_baseline_and_ablation() -> None:
    from typing import get_args

    from flows.ablations import ABLATIONS
    from flows.recipe import Baseline

    words = "".join(
        char if char.isalnum() or char in "-_" else " " for char in cudd("compare", "--help").stdout
    ).split()
    assert set(words) >= {*get_args(Baseline), *ABLATIONS}
