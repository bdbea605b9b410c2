"""Go through Prefect's and MLflow's pages in a real browser as a new user would, and check what they show.

    pip install -e '.[ui-test]'                   Playwright; the browser is the system's own chromium
    python benchmarks/ui.py                       some minutes
    python benchmarks/ui.py --pictures docs/images

`cudd serve` in a temporary home, on loopback. In the pages: a deployment is picked, its form refuses bad values, a
small run is started, its stages, progress, table and picture are looked at, the link to MLflow is followed to report,
curves, grid and shards. Another run is cancelled; seconds count from the click. Prints every step with its seconds.
Exit code 1 if a page lacks something, or a cancelled run took longer than 15 s or left something RUNNING.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.servers import own_home

IPC, SEED = 10, 7
SMALL = [
    "teacher.training.epochs=16",
    "synthesis.iterations=60",
    "student.training.epochs=20",
    "evaluation.training.epochs=20",
    "evaluation.seeds=1",
]
LONG = ["teacher.training.epochs=2000"]
RUN_SECONDS = 600.0
CANCEL_SECONDS = 15.0
WIDTH, HEIGHT = 1400, 900
PATIENCE = 180.0
"""Seconds for one thing to appear: Prefect draws its graph without a GPU, and others may use the machine."""


@dataclass
class Tour:
    """A browser's page, the steps gone, and where pictures go."""

    page: Any
    pictures: Path | None
    rows: list[tuple[str, float]] = field(default_factory=list)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step. What goes wrong in it is shown as a picture beside the others."""
        begin = time.monotonic()
        print(f"… {name}", flush=True)
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                print(f"at {self.page.url}:\n{self.page.inner_text('body')[:2000]}", flush=True)
                if self.pictures is not None:
                    self.page.screenshot(path=self.pictures / "ui-failed.png")
            raise
        self.rows.append((name, time.monotonic() - begin))

    def see(self, *texts: str | re.Pattern[str]) -> None:
        """Wait until the page shows every text."""
        for text in texts:
            self.page.get_by_text(text).first.wait_for()

    def tab(self, name: str) -> None:
        """Open a tab of the page."""
        self.page.get_by_role("tab", name=name).click()

    def picture(self, name: str, height: int = HEIGHT) -> None:
        """Save what the window shows, with few colours: pages have few, and the file stays small."""
        if self.pictures is None:
            return
        self.page.set_viewport_size({"width": WIDTH, "height": height})
        self.page.mouse.move(WIDTH - 1, height - 1)
        self.page.wait_for_timeout(1500)  # animations end
        image = Image.open(io.BytesIO(self.page.screenshot())).convert("RGB")
        image.quantize(128, dither=Image.Dither.NONE).save(self.pictures / f"ui-{name}.png", optimize=True)
        self.page.set_viewport_size({"width": WIDTH, "height": HEIGHT})


def main() -> int:
    """Serve, go through the pages, print the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="save ui-*.png there")
    parser.add_argument("--browser", default=shutil.which("chromium") or "chromium", help="default: chromium on PATH")
    parser.add_argument("--cancels", type=int, default=1, metavar="N", help="how many runs are cancelled, default 1")
    chosen = parser.parse_args()
    if chosen.pictures is not None:
        chosen.pictures.mkdir(parents=True, exist_ok=True)
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory(prefix="cudd-ui-", ignore_cleanup_errors=True) as name:
        home = Path(name)
        os.environ["LOGNAME"] = "you"  # in pictures
        from benchmarks.scheduled import serving
        from flows.servers import ensure_servers

        begin = time.monotonic()
        with own_home(home), serving(home), sync_playwright() as playwright:
            api, mlflow = ensure_servers(home)
            prefect = api.removesuffix("/api")
            # Pages that ask the internet for something wait for it in vain behind a firewall.
            local_only = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
            browser = playwright.chromium.launch(
                executable_path=chosen.browser, args=["--no-sandbox", "--disable-gpu", local_only]
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
            page.set_default_timeout(PATIENCE * 1000)
            tour = Tour(page, chosen.pictures, [("cudd serve answers", time.monotonic() - begin)])
            try:
                good = walk(tour, prefect, mlflow, chosen.cancels)
            finally:
                print("\n".join(f"{seconds:7.1f} s  {step}" for step, seconds in tour.rows), flush=True)
                browser.close()
            return 0 if good else 1


def walk(tour: Tour, prefect: str, mlflow: str, cancels: int) -> bool:
    """Do what a new user does; whether the cancelled runs ended in time and left nothing RUNNING."""
    with tour.step("Prefect: pick the deployment"):
        open_form(tour, prefect, with_picture=True)
    with tour.step("the form refuses bad values"):
        refuse(tour)
        assert flow_runs(prefect) == [], "A run was started all the same."
    with tour.step("fill the form, start the run"):
        fill(tour, IPC, SEED, SMALL)
        run = submit(tour, prefect, refused=True)
    with tour.step("see the progress of a stage"):
        watch_progress(tour, prefect, run)
    with tour.step("the run completes"):
        wait_for(lambda: state_of(prefect, run) == "COMPLETED", RUN_SECONDS)
    with tour.step("see stages, table and picture"):
        mlflow_run = look_at_results(tour, prefect, run)
    with tour.step("MLflow: the run behind the link"):
        look_at_run(tour, mlflow, mlflow_run)
    with tour.step("the report"):
        tour.tab("Artifacts")
        tour.page.get_by_text("report.html").click()
        shown = tour.page.frame_locator("iframe")
        shown.get_by_text("Dataset distillation report").wait_for()
        shown.get_by_text("Margin over random").first.wait_for()
        tour.picture("report")
    with tour.step("curves and grid of a curriculum"):
        look_at_curriculum(tour)
    with tour.step("shards"):
        look_at_shards(tour)
    in_time = []
    for number in range(1, cancels + 1):
        with tour.step("start another run"):
            open_form(tour, prefect)
            fill(tour, None, SEED + number, LONG)
            run = submit(tour, prefect)
            wait_for(lambda: len(running_in_mlflow(mlflow)) >= 2)  # the pipeline's run, and its teacher's
            time.sleep(5)  # in the middle of training
        with tour.step("press Cancel, see Cancelled"):
            in_time.append(cancel(tour, prefect, mlflow, run))
    return all(in_time)


def open_form(tour: Tour, prefect: str, with_picture: bool = False) -> None:
    """From Prefect's first page to the form of distill/digits."""
    page = tour.page
    page.goto(prefect)
    page.get_by_role("link", name="Deployments").click()
    tour.see("cifar10-convnet-ipc10")
    if with_picture:
        tour.picture("deployments")
    # The list shows ten at a time, by name.
    page.get_by_placeholder("Search deployments").fill("digits")
    page.get_by_role("link", name="digits", exact=True).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    tour.see("What is distilled, and how.", "Images per class.", "Another seed gives another set.", "key=value")


def refuse(tour: Tour) -> None:
    """Give the form what it must not take, and see why it does not."""
    page = tour.page
    set_number(tour, "ipc", 0)
    page.get_by_role("tab", name="file").click()
    page.get_by_role("textbox").nth(1).fill("recipes/mine")
    add_setting(tour, "evaluation.seeds 1")
    page.get_by_role("button", name="Submit").click()
    tour.see("'recipes/mine' is not valid", "0 is less than the minimum of 1", "'evaluation.seeds 1' does not match")
    tour.see("Error creating flow run")
    tour.picture("refused", 1450)
    page.get_by_role("tab", name="named").click()
    newest_setting(tour).fill("teacher.minimum_margin=0")


def fill(tour: Tour, ipc: int | None, seed: int, settings: list[str]) -> None:
    """Choose the recipe in its list, write numbers and settings."""
    page = tour.page
    page.get_by_role("button", name="Select named").click()
    page.get_by_role("option", name="cifar10-ipc10").wait_for()
    page.get_by_role("option", name="digits", exact=True).click()
    if ipc is not None:
        set_number(tour, "ipc", ipc)
    set_number(tour, "seed", seed)
    for setting in settings:
        add_setting(tour, setting)


def set_number(tour: Tour, name: str, value: int) -> None:
    """Choose that `ipc` or `seed` is a number, and write it."""
    page = tour.page
    page.get_by_role("tab", name="number").nth(("ipc", "seed").index(name)).click()
    fields = page.get_by_role("spinbutton")
    fields.first.wait_for()
    (fields.first if name == "ipc" else fields.last).fill(str(value))


def add_setting(tour: Tour, text: str) -> None:
    """Add a line to `overrides`, the first list of the form."""
    before = tour.page.get_by_role("textbox").count()
    tour.page.get_by_role("button", name="Add item").first.click()
    wait_for(lambda: tour.page.get_by_role("textbox").count() > before)
    newest_setting(tour).fill(text)


def newest_setting(tour: Tour) -> Any:
    """The last line of `overrides`: only the field of `runner` comes after it."""
    fields = tour.page.get_by_role("textbox")
    return fields.nth(fields.count() - 2)


def submit(tour: Tour, prefect: str, refused: bool = False) -> str:
    """Start the run and open its page; return its id. `refused`: the form shows complaints put right by now."""
    from playwright.sync_api import TimeoutError as NotSeen

    before = {run["id"] for run in flow_runs(prefect)}
    button, started = tour.page.get_by_role("button", name="Submit"), tour.page.get_by_text("scheduled to start now")
    button.click()
    if refused:
        # Prefect's form keeps its complaints until Submit, which may then do no more than take them back. If it does
        # more, its message goes after some seconds, so nothing may come between the two.
        with contextlib.suppress(NotSeen):
            started.first.wait_for(timeout=5000)
        if not started.count() and len(flow_runs(prefect)) == len(before):
            tour.picture("form", 1660)
            button.click()
    started.first.wait_for()
    tour.page.get_by_role("button", name="View run").click()
    tour.page.wait_for_url("**/runs/flow-run/**")
    (run,) = {run["id"] for run in flow_runs(prefect)} - before
    assert run in tour.page.url, tour.page.url
    # A worker asks for work every 10 s, and a run begins with its imports.
    wait_for(lambda: state_of(prefect, run) not in ("SCHEDULED", "PENDING"), RUN_SECONDS)
    tour.see("Running")
    return str(run)


def watch_progress(tour: Tour, prefect: str, run: str) -> None:
    """Open the teacher's progress while it trains. The list of artifacts is as old as the page: load it again."""
    page = tour.page
    deadline = time.monotonic() + PATIENCE
    card = page.get_by_text("squeeze convnet3-w32", exact=True)
    while not card.count():
        assert time.monotonic() < deadline and state_of(prefect, run) == "RUNNING", "No progress is shown."
        page.goto(f"{prefect}/v2/runs/flow-run/{run}?tab=Artifacts")
        tour.see("Running")
        page.wait_for_timeout(3000)
    card.first.click()
    progress = page.get_by_text(re.compile(r"Progress: \d+"))
    progress.wait_for()
    percent = float(re.sub(r"[^\d.]", "", progress.inner_text()))
    assert 0 < percent <= 100, percent
    tour.picture("progress", 500)


def look_at_results(tour: Tour, prefect: str, run: str) -> str:
    """Stages, table and picture of a completed run in Prefect; then follow its link and return the MLflow run's id."""
    page = tour.page
    page.goto(f"{prefect}/v2/runs/flow-run/{run}?tab=TaskRuns")
    tour.see("Completed", "Task runs")
    tour.tab("Task Runs")
    tour.see(
        re.compile("^report$"),
        re.compile("train network distilled convnet3-w32 #0"),
        re.compile("train student|relabel"),
    )
    tour.picture("run")
    open_artifact(tour, "Test accuracy in %, last epoch")
    tour.see("teacher (all data)", "distilled", "random", "selection", "±")
    tour.picture("table", 600)
    page.go_back()
    open_artifact(tour, "The report's picture")
    picture = page.locator("main img, img").last
    picture.wait_for()
    wait_for(lambda: picture.evaluate("element => element.naturalWidth") > 300)
    page.go_back()
    open_artifact(tour, "This run in MLflow")
    link = page.get_by_role("link", name="This run in MLflow", exact=True)
    address = str(link.get_attribute("href"))
    link.click()
    found = re.search(r"/runs/([0-9a-f]{32})", address)
    assert found is not None, address
    return found[1]


def open_artifact(tour: Tour, description: str) -> None:
    """Open one of a flow run's artifacts."""
    tour.tab("Artifacts")
    tour.page.get_by_text(description).first.click()
    tour.page.wait_for_url("**/artifacts/artifact/**")


def look_at_run(tour: Tour, mlflow: str, run: str) -> None:
    """The pipeline's run: numbers, settings, nested runs."""
    page = tour.page
    page.wait_for_url(f"{mlflow}/**{run}**")
    tour.see("distilled_convnet3-w32_accuracy", "teacher.training.epochs", "Finished", "curriculum 2")
    # MLflow opens a panel of its own beside every page until it is closed once.
    with contextlib.suppress(Exception):
        page.get_by_role("button", name="Close").first.click(timeout=5000)
    tour.picture("mlflow")


def look_at_curriculum(tour: Tour) -> None:
    """The student's curves and the grid of the first curriculum, which is a run nested in the pipeline's."""
    page = tour.page
    tour.tab("Overview")
    page.get_by_role("link", name="curriculum 1", exact=True).click()
    tour.see("student_loss")
    tour.tab("Model metrics")
    page.get_by_placeholder("Search metric charts").fill("student")
    wait_for(lambda: page.locator(".js-plotly-plot .scatterlayer .trace").count() >= 2)
    tour.see("student_loss", "student_learning_rate")
    tour.picture("curves", 700)
    tour.tab("Artifacts")
    page.get_by_text("grid.png").first.click()
    wait_for(lambda: shown_image(tour) > 300)
    tour.picture("grid")


def look_at_shards(tour: Tour) -> None:
    """Outputs of `synthesize` in the experiment of stages: images as Parquet, with a preview."""
    page = tour.page
    page.get_by_role("button", name="Model training").click()
    page.get_by_role("link", name="Experiments").first.click()
    page.get_by_role("link", name="cudd-stages").first.click()
    search = page.get_by_placeholder("metrics.rmse")
    search.fill("tags.cudd.stage = 'synthesize'")
    search.press("Enter")
    tour.see(re.compile("synthesize [0-9a-f]{8}"))
    wait_for(lambda: page.get_by_role("link", name=re.compile("^train_network ")).count() == 0)
    tour.picture("stages", 600)
    page.get_by_role("link", name=re.compile("^synthesize ")).first.click()
    tour.see("cudd.digest", re.compile("synthesize slices"))
    tour.tab("Artifacts")
    page.get_by_text("data", exact=True).first.click()
    tour.see(re.compile(r"\.parquet"))
    page.get_by_text("preview.png").click()
    wait_for(lambda: shown_image(tour) > 50)
    tour.picture("shard", 700)


def shown_image(tour: Tour) -> int:
    """Width of the widest image on the page, in its own pixels."""
    images = tour.page.locator("img").evaluate_all("all => all.map(element => element.naturalWidth)")
    return max(images, default=0)


def cancel(tour: Tour, prefect: str, mlflow: str, run: str) -> bool:
    """Press Cancel and time, beside the browser, when the process has ended and both stores say that nothing runs."""
    page = tour.page
    processes = processes_of(run)
    assert processes, "The run has no process."
    print(f"running: {len(processes)} process(es) of the run, {len(running_in_mlflow(mlflow))} MLflow runs", flush=True)
    page.get_by_role("button", name="Open menu").first.click()
    page.get_by_role("menuitem", name="Cancel").click()
    confirm = page.get_by_role("button", name=re.compile("^(Cancel run|Cancel Flow Run|Yes|Confirm|Cancel)", re.I)).last
    confirm.wait_for()
    tour.picture("cancel", 600)
    reached: dict[str, float] = {}
    checks: dict[str, Callable[[], bool]] = {
        "Prefect says Cancelling": lambda: state_of(prefect, run) in ("CANCELLING", "CANCELLED"),
        "the process has ended": lambda: not processes & processes_of(run),
        "Prefect says Cancelled": lambda: state_of(prefect, run) == "CANCELLED",
        "MLflow: nothing is RUNNING": lambda: not running_in_mlflow(mlflow),
        "Prefect: no task is RUNNING": lambda: not running_tasks(prefect, run),
    }
    print(f"the machine's load is {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    clicked = time.monotonic()
    watcher = threading.Thread(target=watch, args=(checks, clicked, reached), daemon=True)
    watcher.start()
    confirm.click()
    watcher.join(PATIENCE)
    for name in checks:
        print(f"{reached.get(name, float('nan')):7.1f} s  after the click: {name}", flush=True)
    wait_for(lambda: state_of(prefect, run) == "CANCELLED")
    page.reload()
    tour.see("Cancelled")
    page.wait_for_timeout(5000)  # the graph is drawn
    tour.picture("cancelled", 700)
    time.sleep(5)
    assert state_of(prefect, run) == "CANCELLED", "Another state came after Cancelled."
    # For a moment there may be another one: Prefect imports the flow to look for hooks.
    assert not processes & processes_of(run), "The run's process goes on."
    return len(reached) == len(checks) and max(reached.values()) <= CANCEL_SECONDS


def watch(checks: dict[str, Callable[[], bool]], since: float, reached: dict[str, float]) -> None:
    """Note when each check first holds."""
    while len(reached) < len(checks) and time.monotonic() < since + PATIENCE:
        for name, holds in checks.items():
            if name not in reached and holds():
                reached[name] = time.monotonic() - since
        time.sleep(0.1)


def processes_of(run: str) -> set[int]:
    """The processes that work for a flow run: Prefect's worker tells them which in their environment."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"PREFECT__FLOW_RUN_ID={run}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found


def flow_runs(prefect: str) -> list[dict[str, Any]]:
    """All flow runs that Prefect has; no schedule is switched on."""
    return list(ask(f"{prefect}/api/flow_runs/filter", {}, token_of(prefect)))


def state_of(prefect: str, run: str) -> str:
    """The type of a flow run's state."""
    return str(ask(f"{prefect}/api/flow_runs/{run}")["state_type"])


def running_tasks(prefect: str, run: str) -> list[str]:
    """Names of a flow run's task runs that Prefect takes to be at work."""
    wanted = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
    return [str(task["name"]) for task in ask(f"{prefect}/api/task_runs/filter", wanted, token_of(prefect))]


def token_of(prefect: str) -> dict[str, str]:
    """The headers without which Prefect's server refuses a POST."""
    client = "ui-tour"
    token = ask(f"{prefect}/api/csrf-token?client={client}")["token"]
    return {"Prefect-Csrf-Client": client, "Prefect-Csrf-Token": token}


def running_in_mlflow(mlflow: str) -> list[str]:
    """Names of MLflow runs that are RUNNING, in all experiments."""
    experiments = ask(f"{mlflow}/api/2.0/mlflow/experiments/search", {"max_results": 100})["experiments"]
    ids = [each["experiment_id"] for each in experiments]
    wanted = {"experiment_ids": ids, "filter": "attributes.status = 'RUNNING'", "max_results": 100}
    return [run["info"]["run_name"] for run in ask(f"{mlflow}/api/2.0/mlflow/runs/search", wanted).get("runs", [])]


def ask(url: str, body: dict[str, Any] | None = None, headers: Mapping[str, str] = MappingProxyType({})) -> Any:
    """GET, or POST with a JSON body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def wait_for(holds: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Return when it holds.

    Raises:
        TimeoutError: it did not in time.
    """
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {seconds:.0f} s.")
        time.sleep(0.3)


if __name__ == "__main__":
    sys.exit(main())
