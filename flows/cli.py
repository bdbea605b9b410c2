"""The command line. Only typer and rich are imported here; what takes seconds is imported by the command using it."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from cudd_core.errors import ConfigError, CuddError, UserError
from flows.ablations import ABLATIONS
from flows.closing import OWN_ERROR, accuracy_table, command, finish, report_error
from flows.option_lists import numbers_of, words
from flows.result_files import check_folder, check_writable, copy_files
from tasks.addresses import home_folder, results_folder
from tasks.passwords import redact

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from tasks.store import Store

_BASELINE_NAMES = "random, selection, herding, kcenter, sre2l, cda"

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_BEGINNING = re.compile(r"[0-9a-f]{4,31}")

EXPORT_FORMATS = ("imagefolder", "hf", "sre2l", "rded", "ddranking")
"""Keys of `cudd_core.exchange.FORMATS`, which takes a second to import."""


class _Commands(TyperGroup):
    """Turns errors into one message and an exit code: 2 for the user's mistakes, 1 for ours. --debug: tracebacks."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            # What carries an exit code is typer's own way to leave: a usage error, --help, typer.Exit.
            if hasattr(error, "exit_code") or isinstance(error, typer.Abort):
                raise
            if (ctx.find_root().obj or {}).get("debug"):
                raise
            code = report_error(error)
        sys.exit(code)


app = typer.Typer(
    cls=_Commands,
    name="cudd",
    help="Curriculum dataset distillation: a few synthetic images per class to train networks on.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(value: bool) -> None:
    if value:
        from cudd_core import software_version

        typer.echo(f"cudd {software_version()}")
        raise typer.Exit


@app.callback()
def _any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def _remember_debug(ctx: typer.Context, value: bool) -> bool:
    if value:
        ctx.find_root().obj = {"debug": True}
    return value


RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE|FILE", help="A name from `cudd recipes`, or a YAML, TOML or JSON file.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one field; may be given several times.")
]
SummaryFile = Annotated[
    Path | None, typer.Option("--summary", metavar="FILE", help="Write the summary, with all numbers, as JSON.")
]
RunnerName = Annotated[
    str, typer.Option(metavar="local|ray|ray://HOST:10001", help="Where heavy tasks run: threads here, or Ray.")
]
Debug = Annotated[bool, typer.Option("--debug", callback=_remember_debug, help="Show the traceback of an error.")]


@app.command()
def recipes() -> None:
    """List the named recipes."""
    from flows.catalogue import CATALOGUE

    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", style="bold", no_wrap=True)
    table.add_column("what it distils")
    for name, settings in CATALOGUE.items():
        table.add_row(name, settings["description"])
    Console().print(table)


@app.command()
def show(recipe: RecipeName, overrides: Overrides = None, debug: Debug = False) -> None:
    """Print a recipe in full, as YAML that `distill` reads."""
    from flows.recipe_text import as_yaml

    typer.echo(as_yaml(_recipe(recipe, overrides)), nl=False)


@app.command()
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    device: Annotated[
        str, typer.Option(help="cpu2, rtx3090, h100 or h200; default: cpu2 or h100, by compute.device.")
    ] = "",
    classes: Annotated[int | None, typer.Option(help="Number of classes, for data of your own.")] = None,
    images: Annotated[int | None, typer.Option(help="Number of training images, for data of your own.")] = None,
    debug: Debug = False,
) -> None:
    """Show what a run would do, without running it: tasks, FLOPs, bytes, hours; with data, also what is stored."""
    from flows.plan import plan as make_plan
    from flows.plan_tables import render

    chosen = _recipe(recipe, overrides)
    console = Console()
    console.print(render(make_plan(chosen, classes, images, device=device or None)))
    if classes is None and images is None and (chosen.data.source == "digits" or chosen.data.root):
        _print_hits(chosen, console)


def _print_hits(recipe: Recipe, console: Console) -> None:
    """Say what of a planned run is stored. The plan stands without it: neither data nor store need be there."""
    from flows import inventory

    try:
        console.print(inventory.hits(recipe, _store()))
    except CuddError as error:
        console.print(f"The store was not searched: {error}", style="dim", markup=False)


@app.command()
def archs(debug: Debug = False) -> None:
    """List the architectures by name, and what is changed for small images."""
    from cudd_core.models.architectures import ARCHITECTURES, SMALL_IMAGE

    table = Table(box=None, pad_edge=False)
    table.add_column("name", style="bold", no_wrap=True)
    for heading in ("network", "from", f"changed up to {SMALL_IMAGE} px"):
        table.add_column(heading)
    for name, architecture in ARCHITECTURES.items():
        table.add_row(name, architecture.title, architecture.library or "here", architecture.small)
    console = Console()
    console.print(table, highlight=False)
    console.print(
        "Also convnet3-w64 (any depth and width), resnet18-w16 (any width), torchvision/NAME and timm/NAME. "
        "Why: docs/architectures.md.",
        highlight=False,
    )


@app.command()
def doctor(debug: Debug = False) -> None:
    """Check this machine: versions, device, disk, home, servers. Exit code 1 if something fails."""
    from flows.doctor import examine, render

    checks = examine()
    Console().print(render(checks))
    if any(check.status == "fail" for check in checks):
        raise typer.Exit(OWN_ERROR)


@app.command()
def distill(
    recipe: RecipeName,
    overrides: Overrides = None,
    summary: SummaryFile = None,
    runner: RunnerName = "local",
    force_stages: Annotated[
        str, typer.Option(metavar="A,B", help="Compute these stages again, even if they are stored.")
    ] = "",
    debug: Debug = False,
) -> None:
    """Distil a data set: from a teacher to a synthetic set with soft labels, evaluated alongside its baselines."""
    chosen = _recipe(recipe, overrides)
    forced = _stages(force_stages)
    check_writable(summary)
    from cudd_core.compute.runtime import Runtime
    from tasks.runners import LOCAL, check_runner

    # What is not there is noticed before a server is started.
    check_runner(runner)
    if runner == LOCAL:
        Runtime(chosen.compute)
    home = home_folder()
    from flows.launch import keep_report, run_flow

    parameters = {"recipe": recipe, "overrides": overrides or [], "force_stages": sorted(forced), "runner": runner}
    result = run_flow("distill", parameters, home, debug=debug)
    report = keep_report(result, home)
    Console().print(accuracy_table(result))
    finish(result, summary, report)


@app.command()
def evaluate(
    run: Annotated[
        str, typer.Argument(metavar="RUN|DIR", help="An MLflow run id, the folder of a finished run, or that of a set.")
    ],
    arch: Annotated[str, typer.Option(metavar="A,B", help="Architectures; by default the run's.")] = "",
    seeds: Annotated[
        int | None, typer.Option(min=1, max=100, help="Fresh networks per architecture; default: the run's.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE|FILE", help="For a set's folder: recipe that gives teacher, data, training.")
    ] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="For a set's folder: change one field of its recipe."),
    ] = None,
    summary: SummaryFile = None,
    debug: Debug = False,
) -> None:
    """Train fresh networks on a distilled set, of a run or in a folder, and measure them on the test split."""
    run = _run_or_folder(run)
    if recipe:
        _recipe(recipe, overrides)
    check_writable(summary)
    home = home_folder()
    from flows.launch import run_flow

    parameters = {
        "run": run,
        "archs": list(words(arch, "--arch")),
        "seeds": seeds,
        "recipe": recipe,
        "overrides": overrides or [],
    }
    result = run_flow("evaluate", parameters, home, debug=debug)
    Console().print(accuracy_table(result))
    report = results_folder(home, result["mlflow_run_id"]) / "report.html"
    finish(result, summary, [("Report", report)])


@app.command()
def compare(
    recipes: Annotated[str, typer.Argument(metavar="RECIPE[,RECIPE…]", help="Names or files, with commas.")],
    baselines: Annotated[
        str, typer.Option(metavar="A,B", help="Sets to compare with (default: each recipe's own): " + _BASELINE_NAMES)
    ] = "",
    seeds: Annotated[
        int, typer.Option(min=0, max=100, help="Fresh networks per set and architecture; 0: the recipe's.")
    ] = 0,
    arch: Annotated[str, typer.Option(metavar="A,B", help="Architectures to evaluate on.")] = "",
    overrides: Overrides = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="KEY=V1,V2", help="Variants of every recipe; if repeated: all combinations."),
    ] = None,
    ablation: Annotated[
        str, typer.Option(metavar="NAME", help="One of the paper's ablations: " + ", ".join(ABLATIONS))
    ] = "",
    repeats: Annotated[
        int, typer.Option(min=1, max=100, help="Whole distillations of each variant, with consecutive seeds.")
    ] = 1,
    ranking: Annotated[
        bool, typer.Option("--ranking", help="Also hard labels and no augmentation, for DD-Ranking's LRS and ARS.")
    ] = False,
    full_data: Annotated[
        bool, typer.Option("--full-data", help="Also train the other architectures on all of the data.")
    ] = False,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Also copy the report's files there.")] = None,
    summary: SummaryFile = None,
    runner: RunnerName = "local",
    debug: Debug = False,
) -> None:
    """Compare recipes, baselines, networks and variants in one table; whatever is already stored is reused."""
    chosen = words(recipes, "RECIPES")
    if not chosen:
        raise ConfigError("Name at least one recipe.")
    for recipe in chosen:
        _recipe(recipe, overrides)
    check_writable(summary)
    if to is not None:
        check_folder(to)
    from flows.variants import expand
    from tasks.runners import check_runner

    check_runner(runner)
    settings = list(overrides or [])
    expand(chosen, settings, vary or [], ablation, repeats)
    home = home_folder()
    from flows.launch import run_flow

    parameters = {
        "recipes": list(chosen),
        "baselines": list(words(baselines, "--baselines")),
        "seeds": seeds,
        "archs": list(words(arch, "--arch")),
        "overrides": settings,
        "vary": list(vary or []),
        "ablation": ablation,
        "repeats": repeats,
        "ranking": ranking,
        "full_data": full_data,
        "runner": runner,
    }
    result = run_flow("compare", parameters, home, debug=debug)
    folder = results_folder(home, result["mlflow_run_id"])
    tables = (folder / "comparison.md").read_text(encoding="utf-8")
    Console().print(tables, markup=False, highlight=False, soft_wrap=True)
    finish(result, summary, [("Report", folder / "comparison.html")])
    if to is not None:
        copy_files(folder, to)


RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="MLflow run id of a distillation; `cudd status` alone lists the latest.")
]
FinishedRun = Annotated[
    str, typer.Argument(metavar="RUN", help="MLflow run id of a distillation, or the folder of a finished one.")
]


@app.command()
def robustness(
    run: FinishedRun,
    corruptions: Annotated[
        str, typer.Option(metavar="A,B", help="Of the 19 (docs/laboratory.md); by default all.")
    ] = "",
    severities: Annotated[str, typer.Option(metavar="1-5|1,3,5", help="How strong.")] = "1-5",
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Networks per set; default: the run's.")] = None,
    summary: SummaryFile = None,
    debug: Debug = False,
) -> None:
    """Measure a run's networks and its teacher on corrupted test images (docs/laboratory.md)."""
    parameters = {
        "run": run,
        "corruptions": list(words(corruptions, "--corruptions")),
        "severities": numbers_of(severities, "--severities"),
        "seeds": seeds,
    }
    _laboratory("robustness", parameters, summary, debug)


@app.command()
def continual(
    run: FinishedRun,
    steps: Annotated[int, typer.Option(min=1, help="Number of learning steps that the classes are split into.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Class orders to try, with one network for each.")] = 3,
    arch: Annotated[str, typer.Option(metavar="A,B", help="Architectures; by default the run's.")] = "",
    summary: SummaryFile = None,
    debug: Debug = False,
) -> None:
    """Learn the classes of a run in steps, from its sets alone (docs/laboratory.md)."""
    _laboratory(
        "continual", {"run": run, "steps": steps, "seeds": seeds, "archs": list(words(arch, "--arch"))}, summary, debug
    )


@app.command()
def coverage(
    run: FinishedRun,
    classes: Annotated[str, typer.Option("--class", metavar="A,B", help="Class names; default: the first.")] = "",
    beside: Annotated[str, typer.Option(metavar="RUN", help="Another distillation of the same data to show.")] = "",
    neighbours: Annotated[int, typer.Option(min=1, max=100, help="k of density and coverage.")] = 5,
    summary: SummaryFile = None,
    debug: Debug = False,
) -> None:
    """Show a run's sets among the originals of a class, in the teacher's features (docs/laboratory.md)."""
    beside = _run_id(beside, "--beside") if beside else ""
    parameters = {"run": run, "classes": list(words(classes, "--class")), "beside": beside, "neighbours": neighbours}
    _laboratory("coverage", parameters, summary, debug)


def _laboratory(job: str, parameters: dict[str, Any], summary: Path | None, debug: bool) -> None:
    """Run a laboratory's flow, print its tables and where its files lie."""
    parameters["run"] = _run_or_folder(parameters["run"])
    check_writable(summary)
    home = home_folder()
    from rich.markdown import Markdown

    from flows.launch import run_flow

    result = run_flow(job, parameters, home, debug=debug)
    files = [Path(file) for file in result["files"]]
    page = next(file for file in files if file.suffix == ".md")
    Console().print(Markdown(page.read_text(encoding="utf-8")))
    finish(result, summary, [("File", file) for file in files])


@app.command()
def status(
    run: RunName = "",
    blocks: Annotated[bool, typer.Option("--blocks", help="Also every block of every stage, a line each.")] = False,
    debug: Debug = False,
) -> None:
    """Show how every stage of a run stands: reused, done, running, failed, missing. Without RUN: the latest runs."""
    if blocks and not run:
        raise ConfigError("--blocks shows the blocks of one run: name it.")
    run = _run_id(run) if run else ""
    from flows import inventory

    Console().print(inventory.status(run, _store(), blocks) if run else inventory.latest(_store()))


@app.command()
def fetch(
    run: RunName,
    name: Annotated[str, typer.Argument(metavar="NAME", help="curriculum/stage/block, or the beginning of it.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder in which to create the parts' folders.")] = Path("."),
    debug: Debug = False,
) -> None:
    """Copy stored outputs of a run by name, for example `curriculum-1/synthesize`, `squeeze` or `assemble`."""
    run = _run_id(run)
    from flows import inventory

    for part in inventory.fetch(run, name, to, _store()):
        typer.echo(f"{to / part.name}  {part.ref.bytes / 1e6:.2f} MB, digest {part.ref.digest[:16]}")


@app.command()
def export(
    run: Annotated[
        str, typer.Argument(metavar="RUN|DIR", help="An MLflow run id, the folder of a finished run, or that of a set.")
    ],
    format_name: Annotated[
        str, typer.Option("--format", metavar="|".join(EXPORT_FORMATS), help="What is to read it (docs/exchange.md).")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the export.")],
    soft_labels: Annotated[
        bool, typer.Option("--soft-labels", help="Also the teacher's labels of all epochs, with every crop and mix.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a previous export in that folder.")] = False,
    debug: Debug = False,
) -> None:
    """Write a finished set as files that other tools read."""
    from flows.catalogue import check_known

    check_known("--format", format_name, EXPORT_FORMATS)
    run = _run_or_folder(run)
    from flows.export import export as write

    console = Console()
    with console.status("Exporting …"):
        done = write(run, format_name, to, soft_labels=soft_labels, force=force)
    size = sum(file.bytes for file in done.files) / 1e6
    line = f"{done.images[0]:,} images of {len(done.classes):,} classes, {size:.1f} MB, digest {done.digest[:16]}"
    console.print(f"{to}  {line}", soft_wrap=True, highlight=False, markup=False)
    if done.soft_labels:
        console.print(f"{to / 'soft_labels'}  the teacher's labels of all epochs", soft_wrap=True, highlight=False)
    console.print(f"{to / 'README.md'} says how it is opened.", soft_wrap=True, highlight=False, markup=False)


@app.command()
def gc(
    hours: Annotated[float, typer.Option(min=0, help="Only what is at least this old.")] = 24.0,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this, only say what would go.")] = False,
    debug: Debug = False,
) -> None:
    """Remove what no kept run needs: abandoned attempts, outputs, checkpoints; and old copies and decoded images.

    A run is kept until it is deleted in MLflow. Copies and decoded images of this machine can be made again; while a
    run goes on, decoded images stay, and so do finished outputs.
    """
    from flows import inventory
    from tasks.garbage import find_garbage, remove_garbage

    store = _store()
    store.pipelines.end_dead()
    garbage = find_garbage(store, hours)
    table = inventory.garbage_table(garbage, removed=yes)  # its sizes are of what is still there
    if yes:
        remove_garbage(store, garbage)
    Console().print(table)


@app.command()
def ui(
    stop: Annotated[bool, typer.Option("--stop", help="End the servers that were started for this home.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --stop: even while a run of this home goes on.")] = False,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the pages in a browser.")] = True,
    debug: Debug = False,
) -> None:
    """Show runs in the Prefect and MLflow web UIs: start both servers on this machine, or reuse them."""
    home = home_folder()
    if stop and not force:
        _check_no_run_goes_on(home)
    from flows.servers import ensure_servers, stop_servers

    console = Console()
    if stop:
        ended = stop_servers(home)
        console.print(f"Ended: {', '.join(ended)}." if ended else f"No servers of {home} are running.", soft_wrap=True)
        return
    with console.status("Starting servers …"):
        api, mlflow = ensure_servers(home)
    prefect = api.removesuffix("/api")
    console.print(f"Prefect  {redact(prefect)}   runs, tasks, progress")
    console.print(f"MLflow   {redact(mlflow)}   curves, artifacts, lineage")
    console.print(f"They keep running; `{command('ui --stop')}` ends them.", soft_wrap=True, highlight=False)
    if browser and sys.stdout.isatty() and (sys.platform == "darwin" or "DISPLAY" in os.environ):
        import webbrowser

        for address in (prefect, mlflow):
            webbrowser.open(address)


@app.command()
def serve(
    limit: Annotated[int, typer.Option(min=1, help="Runs at a time; several compete for the cores or the GPU.")] = 1,
    debug: Debug = False,
) -> None:
    """Serve runs started in the Prefect UI or by schedule: servers, deployments and a worker, until Ctrl-C."""
    from flows.keep_servers import keep_servers
    from flows.serve import deploy, deployments_file, run_worker, serving_environment
    from flows.servers import ensure_servers

    file = deployments_file()
    home = home_folder()
    console = Console()
    with console.status("Starting servers …"):
        prefect, mlflow = ensure_servers(home)
    os.environ.update(serving_environment(home, prefect))
    with console.status("Deploying …"):
        names = deploy(file)
    console.print(f"Prefect  {redact(prefect.removesuffix('/api'))}   {len(names)} deployments: start a run there")
    console.print(f"MLflow   {redact(mlflow)}")
    stopping = command("ui --stop")
    console.print(
        f"Ctrl-C ends the worker. The servers keep running; `{stopping}` ends them.", soft_wrap=True, highlight=False
    )
    keep_servers(home)
    run_worker(limit)


@app.command(name="deploy")
def deploy_command(debug: Debug = False) -> None:
    """Register prefect.yaml's pool, queues, deployments and automations with the Prefect server; start no worker."""
    from flows.serve import deploy, deployments_file, serving_environment
    from flows.servers import ensure_prefect_server
    from tasks.folders import check_home

    file = deployments_file()
    home = home_folder()
    check_home(home)
    os.environ.update(serving_environment(home, ensure_prefect_server(home)))
    typer.echo(f"{len(deploy(file))} deployments are up to date.")


def _store() -> Store:
    from tasks.store import Store

    return Store.from_environment().connect()


def _check_no_run_goes_on(home: Path) -> None:
    from tasks.store import Store

    if Store.from_environment(home).pipelines.any_alive_here():
        raise UserError(
            f"A run of {home} goes on. Without its Prefect server, its stages would be computed and stored, but it "
            "could not be watched or cancelled, and would end minutes late. Wait for it, or cancel it: Ctrl-C in its "
            "shell, or Cancel in Prefect. `cudd ui --stop --force` ends the servers all the same."
        )


def _recipe(name_or_file: str, overrides: list[str] | None) -> Recipe:
    """Return the recipe with its overrides; an unknown name fails before torch is imported."""
    from flows.catalogue import settings_of

    if "/" not in name_or_file and "." not in name_or_file:
        settings_of(name_or_file)  # raises for an unknown name
    from flows.recipes import apply_overrides, find_recipe

    return apply_overrides(find_recipe(name_or_file), overrides or [])


def _run_id(text: str, name: str = "RUN") -> str:
    """Return the id of the one run that `text` is the id of, or the beginning of one."""
    if _RUN_ID.fullmatch(text):
        return text
    if not _BEGINNING.fullmatch(text):
        raise ConfigError(
            f"{name} {text}: no MLflow run id, which has 32 hexadecimal digits; the first four or more are enough. "
            "`cudd status` lists the latest."
        )
    store = _store()
    found = store.pipelines.beginning_with(text)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"{name} {text}: no run of {store.display_uri} begins so. `cudd status` lists the latest.")
    raise ConfigError(f"{name} {text}: {len(found)} runs begin so: {', '.join(found[:5])}. Give more digits.")


def _run_or_folder(text: str) -> str:
    """Return a folder as it is, or a run's id; what can be neither is noticed before a server is started for it."""
    if Path(text).expanduser().is_dir():
        return text
    if not _RUN_ID.fullmatch(text) and not _BEGINNING.fullmatch(text):
        raise ConfigError(
            f"RUN {text}: neither a folder nor an MLflow run id, 32 hexadecimal digits or the first of them. "
            "`cudd status` lists the latest."
        )
    return _run_id(text)


def _stages(text: str) -> frozenset[str]:
    from flows.catalogue import STAGES, check_known

    names = words(text, "--force-stages")
    for name in names:
        check_known("--force-stages", name, STAGES)
    return frozenset(names)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
