"""What a run cost, how to repeat it, where it is stored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cudd_core.reporting import reading
from cudd_core.reporting.markup import Html, element, joined, table
from cudd_core.reporting.reading import duration, size, stage_name

Summary = Mapping[str, Any]


def cost(summary: Summary) -> Html:
    """Show seconds per stage, bytes of images and labels, and peak memory."""
    seconds = summary["seconds"]
    facts = [
        ("images", size(summary["dataset"]["image_bytes"])),
        ("soft labels", reading.soft_labels(summary)),
        ("optimiser's steps of an evaluated network", f"{summary['evaluation_steps']:,}"),
        ("peak memory", size(summary["peak_memory_bytes"])),
        ("tasks computed", f"{summary['computed_tasks']:,}"),
        ("tasks reused", f"{summary['reused_tasks']:,}"),
    ]
    longest, total = max(seconds.values()), sum(seconds.values())
    rows: list[list[object]] = [
        [stage_name(stage), _bar(value / longest if longest else 0.0), duration(value)]
        for stage, value in seconds.items()
    ]
    rows.append([element("strong", "all stages"), "", element("strong", duration(total))])
    return element(
        "section",
        element("h2", "Cost"),
        element(
            "div",
            element("div", table(["stage", "", "time"], rows, text_columns=2)),
            _facts(facts),
            class_="columns",
        ),
    )


def reproduce(summary: Summary) -> Html:
    """Show recipe, seeds, digest, versions, device, and the whole configuration."""
    config, versions = summary["config"], summary["versions"]
    facts: list[tuple[str, object]] = [("recipe", _code(summary["recipe"]))]
    facts += [(path, _code(value)) for path, value in reading.seeds(config)]
    facts += [("digest of the set", _code(summary["dataset"]["digest"])), ("device", summary["device"])]
    facts.append(("versions", ", ".join(f"{name} {versions[name]}" for name in sorted(versions))))
    note = (
        "The same configuration on the same kind of device gives the same bytes: compare the digests. Values that were "
        "set beside the recipe are part of the configuration below."
    )
    return element(
        "section",
        element("h2", "How to reproduce"),
        element("p", note, class_="note"),
        element("pre", summary["command"]),
        _facts(facts),
        element(
            "details",
            element("summary", "The whole configuration"),
            element("pre", json.dumps(config, indent=2, sort_keys=True, default=str, ensure_ascii=False)),
        ),
    )


def where(summary: Summary) -> Html:
    """Show where the run and its set are stored."""
    facts: list[tuple[str, object]] = [
        ("tracking", _link(summary["tracking_uri"])),
        ("MLflow run", _code(summary["mlflow_run_id"])),
        ("run", _code(summary["run_id"])),
        ("distilled set", _code(reading.address(summary["dataset"]["uri"]))),
    ]
    note = "The MLflow run holds every metric as a curve, the images, this report, and links to each stage's outputs."
    return element("section", element("h2", "Where to look"), element("p", note, class_="note"), _facts(facts))


def _facts(facts: Sequence[tuple[str, object]]) -> Html:
    given = [joined([element("dt", name), element("dd", value)]) for name, value in facts if value is not None]
    return element("dl", *given, class_="facts")


def _link(uri: str) -> Html:
    shown = reading.address(uri)
    code = element("code", shown)
    web = shown.lower().startswith(("http://", "https://"))
    return element("a", code, href=shown, rel="noreferrer") if web else code


def _code(value: str) -> Html | None:
    return element("code", value) if value else None  # a flow that Prefect does not run has no id


def _bar(share: float) -> Html:
    return element("span", element("i", style=f"width:{100 * share:.1f}%"), class_="bar")
