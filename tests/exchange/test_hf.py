"""Hugging Face: `datasets.load_dataset` opens an export; the card says what it must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torchvision.transforms.functional import pil_to_tensor

from cudd_core.exchange import Bundle, Origin, read_set, write_export
from cudd_core.image_table import write_images
from cudd_core.records import SyntheticSet

MakeSet = Callable[..., SyntheticSet]
ACCURACY = {"teacher": 0.991, "distilled": {"convnet3": {"mean": 0.956, "std": 0.004, "n": 3}}}


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return pytest.importorskip("datasets", reason="needs Hugging Face's library: pip install datasets")


@pytest.mark.parametrize("channels", [1, 3])
def test_load_dataset_opens_it(make_set: MakeSet, datasets: Any, channels: int, tmp_path: Path) -> None:
    whole = make_set(("zebra", "a: b", "#c"), channels=channels)
    write_export(Bundle(whole), "hf", tmp_path / "export")
    opened = datasets.load_dataset(str(tmp_path / "export"), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.features["label"] == datasets.ClassLabel(names=list(whole.class_names))
    assert isinstance(opened.features["image"], datasets.Image)
    assert opened["label"][:] == whole.labels.tolist() and opened["slice"][:] == whole.slices.tolist()
    images = torch.stack([pil_to_tensor(row["image"]) for row in opened])
    assert torch.equal(images, whole.images)


def test_load_dataset_opens_the_image_folder_too(make_set: MakeSet, datasets: Any, tmp_path: Path) -> None:
    write_export(Bundle(make_set()), "imagefolder", tmp_path / "export")
    opened = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "export"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert opened.features["label"].names == ["cat", "dog", "emu"] and len(opened) == 6


def test_load_dataset_opens_classes_of_one_name(make_set: MakeSet, datasets: Any, tmp_path: Path) -> None:
    whole = make_set(("crane", "dog", "crane"))
    write_export(Bundle(whole), "hf", tmp_path / "export")
    opened = datasets.load_dataset(str(tmp_path / "export"), split="train", cache_dir=str(tmp_path / "cache"))
    assert opened.features["label"].names == ["crane (0)", "dog", "crane (2)"]
    assert read_set(tmp_path / "export").synthetic.class_names == whole.class_names


def test_card(make_set: MakeSet, tmp_path: Path) -> None:
    origin = Origin("digits", "r1", "d1", {"dataset": 'a "b": c'}, ACCURACY)
    write_export(Bundle(make_set(), origin), "hf", tmp_path / "export")
    _, front, body = (tmp_path / "export" / "README.md").read_text().split("---\n", 2)
    matter = yaml.safe_load(front)
    assert matter["license"] == "unknown" and matter["task_categories"] == ["image-classification"]
    assert matter["pretty_name"] == 'a "b": c distilled to 2 images per class'
    assert matter["size_categories"] == ["n<1K"]
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "data/train-*.parquet"}]
    for words in ("6 synthetic images of 3 classes", "recipe `digits`", "| distilled | convnet3 | 95.6 ± 0.4 | 3 |"):
        assert words in body
    assert "| teacher (all data) | | 99.1 | 1 |" in body and "arXiv:2405.09150" in body and "Licence: unknown" in body


def test_a_set_in_a_folder_of_a_configuration_is_read(make_set: MakeSet, tmp_path: Path) -> None:
    """As the Hub keeps them: `plain_text/train-00000-of-00001.parquet`."""
    whole = make_set()
    write_images(whole, tmp_path / "plain_text" / "train-00000-of-00001.parquet")
    found = read_set(tmp_path)
    assert found.format == "hf" and torch.equal(found.synthetic.labels, whole.labels)
