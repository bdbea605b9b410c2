"""README.md of an export: what it is, how it was made, how to open it. For Hugging Face it is the data set card too."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cudd_core.exchange.bundle import Bundle, Origin
from cudd_core.exchange.manifest import CITATION, EXPORT_FILE, LABELS_FOLDER, LICENCE
from cudd_core.reporting.tables import shown_summary

_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))


def card(format_name: str, bundle: Bundle, opening: str) -> str:
    """Return the text. `opening`: code or words that say how to open this format."""
    synthetic, origin = bundle.synthetic, bundle.origin
    n, channels, height, width = synthetic.images.shape
    classes = len(synthetic.class_names)
    colours = "greyscale" if channels == 1 else "colour"
    size = f"{n / classes:.10g} per class, {height} × {width} px, {colours}"
    made = (
        f", distilled from {origin.dataset or 'an image data set'} by Curriculum Dataset Distillation with "
        f"{_objective(origin)}the recipe `{origin.recipe}`{_changes(origin)}."
        if origin.recipe
        else ". How they were made is not known to the software that wrote this folder."
    )
    lines = [
        *(_front_matter(bundle) if format_name == "hf" else []),
        f"# {_title(bundle)}",
        "",
        f"{n:,} synthetic images of {classes:,} classes ({size}){made}",
        "",
        "## Opening it",
        "",
        opening.rstrip(),
        "",
        f"Labels are positions in the list `classes` of `{EXPORT_FILE}`, which holds the true class names.",
    ]
    if bundle.labelling is not None:
        lines += [
            "",
            f"`{LABELS_FOLDER}/` holds the teacher's logits of every epoch (float16, safetensors) with each crop, flip "
            f"and mixing that they belong to; `{LABELS_FOLDER}/labels.json` has the rest.",
        ]
    lines += ["", *_accuracy(origin.accuracy)]
    lines += [
        "## Not anonymous",
        "",
        "Distilled images often start from real ones and stay near them, and the column `source` may name the position "
        "of each original. Share the set only where its originals may be shared.",
        "",
    ]
    lines += ["## Licence and citation", "", f"Licence: {LICENCE}.", ""]
    lines += [CITATION, ""] if origin.recipe else []
    return "\n".join(lines)


def _objective(origin: Origin) -> str:
    """Name the objective of synthesis where it is not the method's own."""
    synthesis = origin.config.get("synthesis")
    name = synthesis.get("objective", "cudd") if isinstance(synthesis, Mapping) else "cudd"
    return "" if name == "cudd" else f"another objective, `{name}`, and "


def _changes(origin: Origin) -> str:
    """Name what was changed in the recipe: the accuracies are not those of the recipe as it is."""
    return f", changed by {', '.join(f'`{change}`' for change in origin.changes)}" if origin.changes else ""


def _title(bundle: Bundle) -> str:
    source = bundle.origin.dataset or "a data set"
    per_class = len(bundle.synthetic.labels) / len(bundle.synthetic.class_names)
    return f"{source} distilled to {per_class:.10g} images per class"


def _front_matter(bundle: Bundle) -> list[str]:
    n = len(bundle.synthetic.labels)
    size = next((words for limit, words in _SIZES if n < limit), "1M<n<10M")
    return [
        "---",
        "license: unknown",
        "task_categories:",
        "- image-classification",
        # A JSON string is a valid YAML string.
        f"pretty_name: {json.dumps(_title(bundle), ensure_ascii=False)}",
        "size_categories:",
        f"- {size}",
        "tags:",
        "- dataset-distillation",
        "- dataset-condensation",
        "- synthetic",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: train",
        "    path: data/train-*.parquet",
        "---",
        "",
    ]


def _accuracy(accuracy: Mapping[str, object]) -> list[str]:
    """Return a Markdown table of the test accuracies that the run measured at the last epoch; empty without any."""
    rows = []
    for method, measured in accuracy.items():
        if isinstance(measured, Mapping):
            for arch, spread in measured.items():
                # This may hold anything if somebody changed the export.
                if isinstance(spread, Mapping) and spread.keys() >= {"mean", "std", "n"}:
                    rows.append(f"| {method} | {arch} | {shown_summary(spread)} | {spread['n']} |")
        elif isinstance(measured, int | float):
            rows.append(f"| {method} (all data) | | {100 * measured:.1f} | 1 |")
    if not rows:
        return []
    head = ["## Accuracy", "", "Test accuracy in %, last epoch, mean ± standard deviation over n networks.", ""]
    return [*head, "| trained on | network | accuracy | n |", "|---|---|---:|---:|", *rows, ""]
