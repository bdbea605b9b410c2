"""A plan as tables for a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from flows.memory import ERROR, peak
from flows.plan import Plan
from flows.quantities import in_bytes, in_flops, in_time


def render(result: Plan) -> Group:
    """Return the plan as tables for a terminal."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column()
    growth = " → ".join(str(boundary) for boundary in result.boundaries)
    facts.add_row("data", f"{result.dataset}: {result.num_train:,} images, {result.num_classes:,} classes")
    facts.add_row("curricula", f"{len(result.boundaries)}: {growth} images per class")
    facts.add_row("class blocks", f"{result.blocks:,}")
    facts.add_row("synthetic images", f"{result.images:,}, {in_bytes(result.image_bytes)} as raw pixels")
    facts.add_row(
        "soft labels",
        f"{in_bytes(result.labels.of_set)} a set, {in_bytes(result.labels.in_all)} in all, as {result.labels.storage}",
    )
    if result.decoded_bytes:
        room = "under the home folder as far as there is room (data.cache)"
        facts.add_row("decoded images", f"{in_bytes(result.decoded_bytes)} {room}")
    fullest, needed = peak(result.memory, result.at_once)
    at_once = f", {result.at_once} tasks at once" if result.at_once > 1 else ""
    facts.add_row("memory", f"{in_bytes(needed)} in {fullest}{at_once}, ± {ERROR:.0%}")
    if result.host_memory:
        facts.add_row("beside the GPU", f"{in_bytes(result.host_memory)} of memory for synthetic sets and labels")
    for arch, forward in result.forward_flops.items():
        facts.add_row(arch, f"{in_flops(forward)} an image, forward")

    stages = Table(title=f"{result.recipe}: {result.tasks:,} tasks, {in_flops(result.flops)}", title_justify="left")
    stages.add_column("stage")
    for heading in ("tasks", "steps", "FLOPs", "estimate"):
        stages.add_column(heading, justify="right")
    for stage in result.stages:
        steps = f"{stage.steps:,.0f}" if stage.steps else "–"
        flops = in_flops(stage.flops) if stage.flops else "–"
        duration = in_time(stage.hours(result.device)) if stage.flops else "–"
        stages.add_row(stage.name, f"{stage.tasks:,}", steps, flops, duration)
    stages.add_section()
    stages.add_row("all", f"{result.tasks:,}", "", in_flops(result.flops), in_time(result.hours), style="bold")

    closing = [
        Text(
            f"Time is {result.device.trust}, for {result.device.title}; data loading is not in it, and stored stages "
            "cost nothing."
        ),
        *(Text(f"Note: {note}", style="yellow") for note in result.notes),
    ]
    return Group(stages, facts, _label_table(result), *closing)


def _label_table(result: Plan) -> Table:
    used = f"every labelled epoch used {result.reuse} times" if result.reuse > 1 else "every epoch labelled"
    table = Table(title=f"Bytes of soft labels by relabel.storage, {used}", title_justify="left")
    table.add_column("storage")
    for heading in ("of the distilled set", "of all sets and students", "smaller than full"):
        table.add_column(heading, justify="right")
    for form in result.label_forms:
        factor = f"{result.full_labels.of_set / form.of_set:.3g} ×" if form.of_set else "–"
        own = "bold" if form == result.labels else ""
        table.add_row(form.storage, in_bytes(form.of_set), in_bytes(form.in_all), factor, style=own)
    return table
