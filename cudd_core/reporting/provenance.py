"""What a run cost, how to repeat it, where it is stored. A part for which the summary has nothing is None."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cudd_core.reporting import reading
from cudd_core.reporting.markup import Html, element, joined, table
from cudd_core.reporting.reading import MISSING, count, duration, mapping, number, size, stage_name

Summary = Mapping[str, Any]


def cost(summary: Summary) -> Html | None:
    """Show seconds per stage, bytes of images and labels, and peak memory."""
    seconds = {str(stage): number(value) for stage, value in mapping(summary.get("seconds")).items()}
    known = {stage: value for stage, value in seconds.items() if value is not None}
    dataset = mapping(summary.get("dataset"))
    facts = [
        ("images", size(number(dataset.get("image_bytes")))),
        ("soft labels", reading.soft_labels(summary)),
        ("optimiser's steps of an evaluated network", count(summary.get("evaluation_steps"))),
        ("peak memory", size(number(summary.get("peak_memory_bytes")))),
        ("tasks computed", _tasks(summary.get("computed_tasks"))),
        ("tasks reused", _tasks(summary.get("reused_tasks"))),
    ]
    facts = [(name, value) for name, value in facts if value != MISSING]
    if not known and not facts:
        return None
    longest, total = max(known.values(), default=0.0), sum(known.values())
    rows: list[list[object]] = [
        [stage_name(stage), _bar(value / longest if longest else 0.0), duration(value)]
        for stage, value in known.items()
    ]
    rows.append([element("strong", "all stages"), "", element("strong", duration(total))])
    return element(
        "section",
        element("h2", "Cost"),
        element(
            "div",
            element("div", table(["stage", "", "time"], rows, text_columns=2)) if known else None,
            _facts(facts),
            class_="columns",
        ),
    )


def reproduce(summary: Summary) -> Html | None:
    """Show recipe, seeds, digest, versions, device, and the whole configuration."""
    config = mapping(summary.get("config"))
    dataset = mapping(summary.get("dataset"))
    versions = mapping(summary.get("versions"))
    facts: list[tuple[str, object]] = [("recipe", _code(summary.get("recipe")))]
    facts += [(path, _code(value)) for path, value in reading.seeds(config)]
    facts += [("digest of the set", _code(dataset.get("digest"))), ("device", summary.get("device"))]
    facts.append(("versions", ", ".join(f"{name} {versions[name]}" for name in sorted(versions)) or None))
    if not config and all(value is None for _, value in facts):
        return None
    note = (
        "The same configuration on the same kind of device gives the same bytes: compare the digests. Values that were "
        "set beside the recipe are part of the configuration below."
    )
    return element(
        "section",
        element("h2", "How to reproduce"),
        element("p", note, class_="note"),
        element("pre", str(summary["command"])) if summary.get("command") else None,
        _facts(facts),
        element(
            "details",
            element("summary", "The whole configuration"),
            element("pre", json.dumps(config, indent=2, sort_keys=True, default=str, ensure_ascii=False)),
        )
        if config
        else None,
    )


def where(summary: Summary) -> Html | None:
    """Show where the run and its set are stored."""
    dataset = mapping(summary.get("dataset"))
    facts: list[tuple[str, object]] = [
        ("tracking", _link(summary.get("tracking_uri"))),
        ("MLflow run", _code(summary.get("mlflow_run_id"))),
        ("run", _code(summary.get("run_id"))),
        ("distilled set", _code(reading.address(dataset.get("uri")) or None)),
    ]
    if all(value is None for _, value in facts):
        return None
    note = "The MLflow run holds every metric as a curve, the images, this report, and links to each stage's outputs."
    return element("section", element("h2", "Where to look"), element("p", note, class_="note"), _facts(facts))


def _facts(facts: list[tuple[str, Any]]) -> Html | None:
    given = [joined([element("dt", name), element("dd", value)]) for name, value in facts if value is not None]
    return element("dl", *given, class_="facts") if given else None


def _link(uri: object) -> Html | None:
    shown = reading.address(uri)
    if not shown:
        return None
    code = element("code", shown)
    web = shown.lower().startswith(("http://", "https://"))
    return element("a", code, href=shown, rel="noreferrer") if web else code


def _code(value: object) -> Html | None:
    return None if value is None or value == "" else element("code", value)


def _bar(share: float) -> Html:
    return element("span", element("i", style=f"width:{100 * share:.1f}%"), class_="bar")


def _tasks(value: object) -> str:
    return count(len(value) if isinstance(value, list | tuple | Mapping) else value)
