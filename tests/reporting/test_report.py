"""The report as a whole: complete, self-contained, escaped, repeatable."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cudd_core.reporting import page, theme
from cudd_core.reporting.accuracy import accuracy_figure
from cudd_core.reporting.classes import class_table
from cudd_core.reporting.curves import training_curves
from cudd_core.reporting.grid import preview_grid
from cudd_core.reporting.poster import poster
from cudd_core.reporting.theme import png_bytes

BY_CLASS = class_table(("cat", "dog"), [60, 40], {"distilled convnet3": [0.7, 0.65]})
HOSTILE = '"><script>alert(1)</script>$\\frac{'


def summary() -> dict[str, Any]:
    """A run with everything in it."""

    def of(mean: float, std: float, n: int = 3) -> dict[str, Any]:
        return {"mean": mean, "std": std, "n": n, "values": [mean] * n}

    own = {"mean": 0.681, "std": 0.003, "n": 3, "values": [0.678, 0.681, 0.684]}
    return {
        "recipe": "cifar10-ipc10",
        "command": "cudd distill cifar10-ipc10",
        "config": {
            "seed": 7,
            "schedule": {"ipc": 10},
            "relabel": {"storage": "full", "top": 5, "reuse": 1},
            "evaluation": {"labels": "soft"},
        },
        "run_id": "run-1",
        "mlflow_run_id": "abc123",
        "tracking_uri": "http://alice:secret@tracking.example:5000",
        "reused_tasks": 3,
        "computed_tasks": 2,
        "curricula": [
            {
                "index": 1,
                "ipc": 5,
                "tiers": {"right_and_wrong": 0, "right": 50},
                "student_accuracy": 0.5512,
                "seconds": {"classify": 12.1, "select": 0.02, "synthesize": 300.4, "relabel": 41, "train_student": 220},
            },
            {"index": 2, "ipc": 10, "tiers": {"right_and_wrong": 50}, "student_accuracy": None, "seconds": {}},
        ],
        "dataset": {
            "uri": "mlflow-artifacts:/1/abc/set",
            "digest": "sha256:5f70",
            "images": 100,
            "classes": 10,
            "image_bytes": 251_233,
            "label_bytes": 20_000_000,
        },
        "accuracy": {
            "teacher": 0.857,
            "distilled": {"convnet3": own, "resnet18": of(0.6, 0.01)},
            "random": {"convnet3": of(0.634, 0.004), "resnet18": of(0.5, 0.02)},
            "selection": {"convnet3": of(0.641, 0.0, 1), "resnet18": of(0.51, 0.0, 1)},
            "sre2l": {"convnet3": of(0.532, 0.0, 1), "resnet18": of(0.41, 0.0, 1)},
        },
        "seconds": {"synthesize": 611.8, "relabel": 85.0},
        "evaluation_steps": 7000,
        "peak_memory_bytes": 1_812_345_678,
        "device": "cpu",
        "versions": {"torch": "2.14.1", "cudd": "0.1.0"},
    }


def grid(name: str = "digit") -> Image.Image:
    images = torch.arange(2 * 64, dtype=torch.uint8).reshape(2, 1, 8, 8)
    return preview_grid(images, 255 - images, (name, name), [0, 1])


def curve(title: str = "Synthesis") -> Image.Image:
    return training_curves([{"iteration": float(i), "ce": 1 / (i + 1), "bn": 10.0 + i} for i in range(5)], title)


def written(
    folder: Path, summary: dict[str, Any], grids: dict[str, Image.Image], curves: dict[str, Image.Image]
) -> Path:
    """Draw what a report shows, and write it."""
    figure = accuracy_figure(summary["accuracy"])
    encoded = [{title: png_bytes(image) for title, image in drawn.items()} for drawn in (grids, curves)]
    picture = png_bytes(poster(figure, next(iter(grids.values()), grid())))
    return page.write_report(folder, summary, picture, png_bytes(figure), *encoded, BY_CLASS)


class Reader(HTMLParser):
    """Collect tags with their attributes, and the text outside the style sheet."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert not reader.open
    return reader


def test_a_newcomer_finds_the_result(tmp_path: Path) -> None:
    path = written(tmp_path / "new", summary(), {"Curriculum 1": grid()}, {"Synthesis": curve()})

    assert path == tmp_path / "new" / "report.html"
    text = read(path).text.replace("\u00a0", " ")
    for words in (
        "cifar10-ipc10",
        "100 synthetic images (10 for each of 10 classes)",
        "85.7 %",
        "68.1 ± 0.3 %",
        "+4.7 ± 0.3 points; random real images: 63.4 ± 0.4 %",
        "teacher right, student wrong",
        "55.1 %",
        "5 min 00 s",
        "Curriculum 1",
        "245.3 KiB",
        "1.7 GiB",
        "cudd distill cifar10-ipc10",
        "sha256:5f70",
        "cudd 0.1.0, torch 2.14.1",
        "http://tracking.example:5000",
        "abc123",
        "Counts are images by why they were selected",
        "The whole configuration",
    ):
        assert words in text
    assert "secret" not in text
    # The table of accuracies: a line a set, a column a network.
    for line in ("63.4 ± 0.4", "64.1", "53.2", "60.0 ± 1.0", "Teacher 85.7 %"):
        assert line in " ".join(text.split()), line
    links = [attributes.get("href") for name, attributes in read(path).tags if name == "a"]
    assert "http://tracking.example:5000" in links


def test_a_loss_against_random_is_shown_as_one(tmp_path: Path) -> None:
    worse = summary()
    worse["accuracy"]["random"]["convnet3"]["mean"] = 0.7
    assert "−1.9\u00a0±\u00a00.3" in read(written(tmp_path, worse, {}, {})).text


def test_hard_labels_are_not_called_soft(tmp_path: Path) -> None:
    hard = summary()
    assert "with the teacher's soft labels" in read(written(tmp_path, hard, {}, {})).text
    hard["config"]["evaluation"]["labels"] = "hard"
    text = read(written(tmp_path, hard, {}, {})).text
    assert "with the classes alone as labels" in text and "the teacher's soft labels" not in text


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    path = written(tmp_path, summary(), {"Curriculum 1": grid()}, {"Synthesis": curve()})

    tags = read(path).tags
    assert {name for name, _ in tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
    sources = [attributes["src"] or "" for _, attributes in tags if "src" in attributes]
    assert len(sources) == 3
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import", path.read_text(encoding="utf-8"))
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in tags)


def test_whatever_comes_from_outside_is_escaped(tmp_path: Path) -> None:
    hostile = summary() | {
        "recipe": HOSTILE,
        "command": HOSTILE,
        "device": HOSTILE,
        "tracking_uri": f"javascript:{HOSTILE}",
        "config": summary()["config"] | {HOSTILE: HOSTILE, "seed": HOSTILE},
        "versions": {HOSTILE: HOSTILE},
        "accuracy": {"teacher": 0.9, "distilled": {HOSTILE: {"mean": 0.5, "std": 0.0, "n": 1, "values": [0.5]}}},
    }
    path = written(tmp_path, hostile, {HOSTILE: grid(HOSTILE)}, {HOSTILE: curve(HOSTILE)})

    reader = read(path)
    assert "script" not in {name for name, _ in reader.tags}
    assert HOSTILE in reader.text
    assert all(not name.startswith("on") for _, attributes in reader.tags for name in attributes)
    assert not any((attributes.get("href") or "").startswith("javascript") for _, attributes in reader.tags)


def test_a_run_without_baselines(tmp_path: Path) -> None:
    plain = summary()
    plain["accuracy"] = {"teacher": 0.857, "distilled": plain["accuracy"]["distilled"]}
    text = read(written(tmp_path, plain, {}, {})).text
    assert "68.1 ± 0.3" in text
    assert "random real images were not evaluated in this run" in text


def test_pictures_are_shown_at_the_size_they_were_drawn_for(tmp_path: Path) -> None:
    path = written(tmp_path, summary(), {"Curriculum 1": grid()}, {"Synthesis": curve()})
    sizes = [(tag["width"], tag["height"]) for name, tag in read(path).tags if name == "img"]
    doubled = [accuracy_figure(summary()["accuracy"]), curve()]
    expected = [(round(image.width / 2), round(image.height / 2)) for image in doubled]
    assert sizes == [(str(w), str(h)) for w, h in (expected[0], grid().size, expected[1])]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        written(tmp_path / name, summary(), {"Curriculum 1": grid()}, {"Synthesis": curve()})
    for file in ("report.html", "report.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_picture_for_a_readme_is_a_plain_png(tmp_path: Path) -> None:
    written(tmp_path, summary(), {"Curriculum 1": grid()}, {})
    with Image.open(tmp_path / "report.png") as picture:
        assert picture.format == "PNG"
        assert picture.mode == "RGB"
        assert not picture.info
        assert picture.width > accuracy_figure(summary()["accuracy"]).width + 2 * grid().width


def test_png_bytes_round_trip() -> None:
    image = curve()
    with Image.open(io.BytesIO(png_bytes(image))) as loaded:
        assert loaded.tobytes() == image.tobytes()
        assert loaded.info["dpi"] == pytest.approx((192, 192), abs=0.1)


def test_more_than_four_quantities_take_two_rows_of_panels() -> None:
    four, five = ({"epoch": 1.0, **dict.fromkeys(names, 1.0)} for names in ("abcd", "abcde"))
    assert training_curves([five], "two rows").height > training_curves([four], "one row").height


def test_a_learning_rate_is_drawn_on_a_linear_axis_whatever_it_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    rendered = theme.rendered
    monkeypatch.setattr(theme, "rendered", lambda figure: (drawn.append(figure), rendered(figure))[1])
    training_curves([{"epoch": n, "learning_rate": 10.0**-n, "loss": 10.0**-n} for n in (1, 2, 3, 4)], "both")
    assert [axes.get_yscale() for axes in drawn[0].axes] == ["linear", "log"]


def test_the_figure_grows_with_what_was_measured() -> None:
    accuracy = summary()["accuracy"]
    one = accuracy_figure({name: accuracy[name] for name in ("teacher", "distilled")})
    assert accuracy_figure(accuracy).height > one.height and accuracy_figure(accuracy).width == one.width


def test_import_is_cheap() -> None:
    modules = "cudd_core.reporting.page, cudd_core.reporting.accuracy, cudd_core.reporting.poster"
    code = f"import sys, {modules}; print(*({{'matplotlib', 'PIL', 'torch', 'numpy'}} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []
