"""The page: one self-contained HTML file that goes from the results at the top to how to reproduce them below.

Nothing here has a timestamp, so the same input gives the same bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cudd_core.reporting import classes, provenance, reading, results
from cudd_core.reporting.markup import Html, element, joined
from cudd_core.reporting.style import CSS
from cudd_core.reporting.tables import Table

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Makes the browser refuse whatever is not in the file itself."""


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    picture: bytes,
    accuracy: bytes,
    grids: Mapping[str, bytes],
    curves: Mapping[str, bytes],
    by_class: Table,
) -> Path:
    """Write `report.html` (self-contained: images embedded, no scripts, no network) and `report.png` (for a README).

    `classes.csv` has the accuracy on every class.

    Pictures are given as PNG files. Nothing is drawn here: whatever changes with every run, such as its times, is text.

    Args:
        folder: where to write; created if missing.
        summary: the run's summary as `--summary` writes it.
        picture: the content of `report.png`, a `poster`.
        accuracy: the `accuracy_figure` of the summary.
        grids: title → picture, in the order of the curricula.
        curves: title → picture.
        by_class: a `class_table`.

    Returns:
        The path of `report.html`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.png").write_bytes(picture)
    target = folder / "report.html"
    target.write_bytes(page(summary, accuracy, grids, curves, by_class).encode("utf-8"))
    (folder / "classes.csv").write_text(by_class.csv(), encoding="utf-8")
    return target


def page(
    summary: Mapping[str, Any],
    accuracy: bytes,
    grids: Mapping[str, bytes],
    curves: Mapping[str, bytes],
    by_class: Table,
) -> str:
    """Return the report as HTML. Pictures are given as PNG files."""
    recipe = summary["recipe"]
    body = element(
        "main",
        element("p", "Dataset distillation report", class_="eyebrow"),
        element("h1", recipe),
        results.lead(summary),
        results.tiles(summary),
        _accuracy(summary, accuracy),
        classes.section(by_class),
        results.curricula(summary),
        _pictures(
            "The images",
            "Where there are two rows, the upper one has the real image that each synthetic one started from. The "
            "synthetic images are all that a network trained on the distilled set ever sees.",
            grids,
            titled=True,
        ),
        _pictures("Training and synthesis", "What was logged. Each panel has its own scale.", curves, titled=False),
        provenance.cost(summary),
        provenance.reproduce(summary),
        provenance.where(summary),
    )
    return document(f"{recipe} · dataset distillation report", body)


def document(title: str, body: Html) -> str:
    """Return a self-contained page: no scripts, no network."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(CSS)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', body), lang='en')}\n"


def picture(png: bytes, description: str) -> Html:
    """Embed a PNG file; one drawn at a higher resolution than a plain screen's is shown at its intended size."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        # PNG stores the resolution in dots per metre: 192 dots per inch come back as 191.9986.
        scale = min(1.0, 96 / round(image.info.get("dpi", (96, 96))[0]))
        width, height = image.size
    return element(
        "img",
        src=f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}",
        alt=description,
        width=round(width * scale),
        height=round(height * scale),
    )


def _accuracy(summary: Mapping[str, Any], figure: bytes) -> Html:
    drawn = joined(
        [
            picture(figure, "Test accuracy of each method on each architecture, beside the teacher"),
            element(
                "figcaption",
                "Large dots: means. Bars: one standard deviation either way. Small dots below: single networks.",
            ),
        ]
    )
    labels = "the classes alone as labels" if reading.hard_labels(summary) else "the teacher's soft labels"
    return element(
        "section",
        element("h2", "Accuracy"),
        element(
            "p",
            "Every figure is the test accuracy, after the last epoch, of a network trained from scratch on a small set "
            f"alone, with {labels}. The fair comparison is with as many real images drawn at random.",
            class_="note",
        ),
        element("figure", drawn),
        element("h3", "In figures: mean ± standard deviation in per cent, n networks"),
        results.accuracy_table(summary),
    )


def _pictures(heading: str, explanation: str, pictures: Mapping[str, bytes], titled: bool) -> Html | None:
    if not pictures:
        return None
    figures = [
        joined([element("h3", title) if titled else None, element("figure", picture(png, f"{heading}: {title}"))])
        for title, png in pictures.items()
    ]
    return element("section", element("h2", heading), element("p", explanation, class_="note"), *figures)
