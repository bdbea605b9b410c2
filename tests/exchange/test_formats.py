"""Every format: what is written comes back bit for bit, and what is wrong is said, with nothing left behind."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from cudd_core.codec import content_digest, write_record
from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.errors import ConfigError, DataError, ResourceError
from cudd_core.exchange import FORMATS, Bundle, Origin, read_set, tree, write_export
from cudd_core.exchange.bundle import class_major
from cudd_core.exchange.class_folders import class_folders
from cudd_core.exchange.manifest import irreplaceable
from cudd_core.exchange.staging import staged_folder
from cudd_core.records import SyntheticSet

MakeSet = Callable[..., SyntheticSet]
TREES = {"imagefolder": "train", "sre2l": "syn_data", "rded": "syn_data", "ddranking": "images"}
NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True)
AWKWARD = ("../../etc", "con", "-rf", "b/c\\d", "", ".hidden", "Cat", "cat", "naïve ✓", "x" * 300, "0")


def same(one: SyntheticSet, other: SyntheticSet) -> None:
    for field in fields(SyntheticSet):
        a, b = getattr(one, field.name), getattr(other, field.name)
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b, field.name


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES, st.integers(1, 3), st.sampled_from([1, 3]), st.integers(8, 12), st.integers(0, 99))
@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(
    make_set: MakeSet, name: str, classes: list[str], ipc: int, channels: int, size: int, seed: int
) -> None:
    whole = make_set(tuple(classes), ipc, channels, size, seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "export"
        manifest = write_export(Bundle(whole), name, folder)
        found = read_set(folder)
        same(found.synthetic, whole)
        assert found.format == name and found.named
        assert manifest.digest == content_digest(whole) == content_digest(found.synthetic)
        assert {file.path for file in manifest.files} | {"export.json"} == {
            path for path in everything(folder) if (folder / path).is_file()
        }


@pytest.mark.parametrize("name", FORMATS)
def test_awkward_class_names_stay_inside_and_come_back(make_set: MakeSet, name: str, tmp_path: Path) -> None:
    whole = make_set(AWKWARD)
    write_export(Bundle(whole), name, tmp_path / "a" / "export")
    assert everything(tmp_path) & {"etc", "a/etc"} == set() and set(tmp_path.iterdir()) == {tmp_path / "a"}
    same(read_set(tmp_path / "a" / "export").synthetic, whole)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=30))
def test_folders_are_safe_and_sort_in_the_order_of_the_classes(names: list[str]) -> None:
    folders = class_folders(names)
    assert list(folders) == sorted(folders) and len({each.casefold() for each in folders}) == len(names)
    for each in folders:
        assert each and each[0] != "." and not set(each) & set('/\\:*?"<>|\0\n') and len(each.encode()) < 200


def test_plain_names_stay_plain_and_unsorted_ones_get_numbers() -> None:
    assert class_folders(("airplane", "bird", "n01440764")) == ("airplane", "bird", "n01440764")
    assert class_folders(("dog", "cat")) == ("0_dog", "1_cat")
    # Our own source sorts whole numbers as numbers, torchvision as text.
    assert class_folders(tuple(map(str, range(11))))[10] == "10_10"
    assert class_folders(("0", "1", "10", "2")) == ("0_0", "1_1", "2_10", "3_2")
    assert class_folders(("0", "1", "2")) == ("0", "1", "2")
    # `datasets` passes over folders that begin so.
    assert class_folders(("__background__", "cat")) == ("0___background__", "1_cat")


def test_folders_of_numbers_have_one_order(make_set: MakeSet, tmp_path: Path) -> None:
    """Somebody's set of folders 0 to 11 and the data that it was made of agree on what each number means."""
    names = [str(number) for number in range(12)]
    for name in names:
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), (int(name), 0, 0)).save(tmp_path / "set" / name / "a.png")
    found = read_set(tmp_path / "set").synthetic
    assert list(found.class_names) == names and found.images[:, 0, 0, 0].tolist() == list(range(12))
    # And what is exported under such names is read back by the source that reads folders.
    odd = make_set(classes=("0", "1", "10", "2"))
    write_export(Bundle(odd), "imagefolder", tmp_path / "export")
    config = DataConfig(source="image_folder", root=str(tmp_path / "export"), channels=3, image_size=9)
    split = open_split(config, "train")
    for label in range(4):
        own = odd.images[odd.labels == label]
        assert torch.equal(split.images((split.labels == label).nonzero().flatten()), own)


@pytest.mark.parametrize("name", TREES)
def test_torchvision_lists_the_images_in_the_order_of_the_index(make_set: MakeSet, name: str, tmp_path: Path) -> None:
    whole = make_set(tuple(f"class {k}" for k in range(12)), ipc=3)
    manifest = write_export(Bundle(whole), name, tmp_path / "export")
    listed = ImageFolder(str(tmp_path / "export" / TREES[name]), pil_to_tensor)
    order = class_major(whole)
    assert manifest.root == TREES[name] and listed.classes == list(manifest.folders)
    assert [label for _, label in listed.samples] == whole.labels[order].tolist()
    assert torch.equal(torch.stack([image for image, _ in listed]), whole.images[order])
    with (tmp_path / "export" / "index.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [str(tmp_path / "export" / row["path"]) for row in rows] == [path for path, _ in listed.samples]
    assert [int(row["source"]) for row in rows] == whole.sources[order].tolist()


def test_names_of_other_peoples_layouts(make_set: MakeSet, tmp_path: Path) -> None:
    whole = make_set(ipc=1)
    for name in ("sre2l", "rded"):
        write_export(Bundle(whole), name, tmp_path / name)
    assert "syn_data/new002/class002_id000.png" in everything(tmp_path / "sre2l")
    assert "syn_data/00002/class00002_id00000.png" in everything(tmp_path / "rded")
    many = make_set(tuple(f"{k:04d}" for k in range(1001)), ipc=1, size=8)
    write_export(Bundle(many), "sre2l", tmp_path / "many")
    folders = [path.name for path in (tmp_path / "many" / "syn_data").iterdir()]
    assert sorted(folders)[1000] == "new1000" and sorted(folders)[0] == "new0000"


# ---- sets of others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_an_export_without_its_manifest_is_read_as_anybodys(make_set: MakeSet, name: str, tmp_path: Path) -> None:
    whole = make_set()
    folder = tmp_path / "export"
    write_export(Bundle(whole), name, folder)
    (folder / "export.json").unlink()
    found = read_set(folder)
    assert found.format == name and found.manifest is None
    assert found.named == (name in ("imagefolder", "hf"))
    assert found.synthetic.class_names == (whole.class_names if found.named else ("0", "1", "2"))
    assert torch.equal(found.synthetic.images, whole.images) and torch.equal(found.synthetic.labels, whole.labels)
    assert torch.equal(found.synthetic.slices, whole.slices) and bool((found.synthetic.sources == -1).all())


@pytest.mark.parametrize(
    "layout", ["new{:03d}/class{:03d}_id{:03d}.jpg", "{:05d}/class{:05d}_id{:05d}.jpg", "c{}/{}{}.jpg"]
)
def test_lossy_files_of_others_are_read_as_they_are(make_set: MakeSet, layout: str, tmp_path: Path) -> None:
    whole = make_set(ipc=3, size=16)
    for image, label, rank in zip(whole.images, whole.labels.tolist(), whole.slices.tolist(), strict=True):
        file = tmp_path / layout.format(label, label, rank)
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, quality=75)
    found = read_set(tmp_path).synthetic
    file = tmp_path / layout.format(1, 1, 2)
    assert torch.equal(found.images[7], pil_to_tensor(Image.open(file)))
    assert found.labels.tolist() == whole.labels.tolist() and len(found.class_names) == 3


def test_classes_may_have_different_numbers_of_images(tmp_path: Path) -> None:
    for path in ("b/1", "a/1", "b/0", "b/2"):
        file = tmp_path / f"{path}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), ord(path[0]) + int(path[2])).save(file)
    found = read_set(tmp_path).synthetic
    assert (found.labels.tolist(), found.slices.tolist()) == ([0, 1, 1, 1], [0, 0, 1, 2])
    assert found.images[:, 0, 0, 0].tolist() == [ord("a") + 1, ord("b"), ord("b") + 1, ord("b") + 2]
    with pytest.raises(ConfigError, match="same number of images in every class; here they have 1 to 3"):
        write_export(Bundle(found), "ddranking", tmp_path.parent / "export")
    assert not (tmp_path.parent / "export").exists()


def test_a_stored_set_is_read(make_set: MakeSet, tmp_path: Path) -> None:
    write_record(make_set(), tmp_path)
    same(read_set(tmp_path).synthetic, make_set())


def picture(size: tuple[int, int] = (8, 8), mode: str = "RGB") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "PNG")
    return stream.getvalue()


REFUSED: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({".x": b""}, "has no class folders"),
    "a pickle": ({"images.pt": b"PK"}, r"images\.pt, a pickle.*examples/tensors_to_folder\.py"),
    "two sizes": ({"a/0.png": picture(), "b/0.png": picture((9, 9))}, "9 × 9 px, but .* 8 × 8 px"),
    "oblong": ({"a/0.png": picture((8, 9))}, "must be square"),
    "grey among colour": ({"a/0.png": picture(), "b/0.png": picture(mode="L")}, "is greyscale, .* is colour"),
    "cut off": ({"a/0.png": picture()[:36]}, "cannot be read as an image"),
    "no image": ({"a/0.png": b"import os"}, "not an image by its first bytes"),
    "a number too few": ({"new000/0.png": picture(), "new002/0.png": picture()}, "numbered 0 to 1"),
    "the same number twice": ({"new1/0.png": picture(), "new001/0.png": picture()}, "numbered 0 to 1"),
    "a broken manifest": ({"export.json": b"{"}, "export.json cannot be read"),
    "a later version": ({"export.json": b'{"version": 99}'}, "has version 99"),
    "no manifest at all": ({"export.json": b"[]"}, "export.json cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_named(case: str, tmp_path: Path) -> None:
    files, message = REFUSED[case]
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_set(tmp_path)


# ---- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_changed_byte_is_noticed(make_set: MakeSet, name: str, tmp_path: Path) -> None:
    write_export(Bundle(make_set()), name, tmp_path / "export")
    file = next(path for path in sorted((tmp_path / "export").rglob("*")) if path.suffix in (".png", ".parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"{file.name}: does not match its sha256"):
        read_set(tmp_path / "export")


def test_the_card_may_be_completed(make_set: MakeSet, tmp_path: Path) -> None:
    write_export(Bundle(make_set()), "hf", tmp_path / "export")
    with (tmp_path / "export" / "README.md").open("a") as file:
        file.write("Licence of the photographs: CC BY 4.0\n")
    same(read_set(tmp_path / "export").synthetic, make_set())


def test_sizes_that_no_memory_holds_are_refused(make_set: MakeSet, tmp_path: Path) -> None:
    for name in ("hf", "rded"):
        write_export(Bundle(make_set()), name, tmp_path / name)
        file = tmp_path / name / "export.json"
        document = json.loads(file.read_text())
        document["images"][2:] = [10**9, 10**9]
        file.write_text(json.dumps(document))
        with pytest.raises(DataError, match="cannot be read"):
            read_set(tmp_path / name)


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b", "C:\\x"])
def test_a_manifest_cannot_lead_outside(make_set: MakeSet, path: str, tmp_path: Path) -> None:
    write_export(Bundle(make_set()), "imagefolder", tmp_path / "export")
    file = tmp_path / "export" / "export.json"
    document = json.loads(file.read_text())
    document["files"] = [{**document["files"][0], "path": path}]
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match="not inside the folder"):
        read_set(tmp_path / "export")


def test_links_are_not_followed(make_set: MakeSet, tmp_path: Path) -> None:
    write_export(Bundle(make_set()), "imagefolder", tmp_path / "export")
    file = next((tmp_path / "export" / "train").rglob("*.png"))
    shutil.move(file, tmp_path / "elsewhere.png")
    file.symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(DataError, match="is not a regular file"):
        read_set(tmp_path / "export")


@pytest.mark.parametrize("change", ["a value of another type", "the order of the classes"])
def test_a_manifest_of_another_set_is_noticed(make_set: MakeSet, change: str, tmp_path: Path) -> None:
    write_export(Bundle(make_set()), "imagefolder", tmp_path / "export")
    file = tmp_path / "export" / "export.json"
    document = json.loads(file.read_text())
    if change == "the order of the classes":
        document["classes"] = ["dog", "cat", "emu"]
    else:
        document["origin"]["train_data"] = 7
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"was altered|does not hold the set"):
        read_set(tmp_path / "export")


# ---- whole or not at all --------------------------------------------------------------------------------------------


def test_a_target_in_use_is_left_alone(make_set: MakeSet, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years")
    for force in (False, True):
        with pytest.raises(ConfigError, match="not empty and is no export"):
            write_export(Bundle(make_set()), "hf", mine, force=force)
    with pytest.raises(ConfigError, match="is a file or a link"):
        write_export(Bundle(make_set()), "hf", mine / "thesis.tex", force=True)
    # A name that other programs use too.
    (mine / "export.json").write_text('{"from": "a dashboard"}')
    with pytest.raises(ConfigError, match="not empty and is no export"):
        write_export(Bundle(make_set()), "hf", mine, force=True)
    assert everything(tmp_path) == {"mine", "mine/thesis.tex", "mine/export.json"}


def test_what_somebody_put_into_an_export_is_not_lost(make_set: MakeSet, tmp_path: Path) -> None:
    target = tmp_path / "export"
    write_export(Bundle(make_set(seed=1)), "hf", target)
    (target / "runs").mkdir()
    (target / "runs" / "best.safetensors").write_bytes(b"days")
    with pytest.raises(ConfigError, match=r"holds runs/best\.safetensors, which is no part of the export"):
        write_export(Bundle(make_set(seed=2)), "hf", target, force=True)
    (target / "runs" / "best.safetensors").unlink()
    write_export(Bundle(make_set(seed=2)), "hf", target, force=True)
    same(read_set(target).synthetic, make_set(seed=2))


def test_what_appears_while_an_export_is_made_is_left_alone(
    make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, encode = tmp_path / "export", tree.encode_png

    def meanwhile(image: torch.Tensor) -> bytes:
        target.mkdir(exist_ok=True)
        (target / "thesis.tex").write_text("years")
        return encode(image)

    monkeypatch.setattr(tree, "encode_png", meanwhile)
    for force in (False, True):
        with pytest.raises(ConfigError, match="not empty and is no export"):
            write_export(Bundle(make_set()), "rded", target, force=force)
        assert everything(tmp_path) == {"export", "export/thesis.tex"}
        (target / "thesis.tex").unlink()


def test_an_edited_card_is_not_replaced(make_set: MakeSet, tmp_path: Path) -> None:
    target = tmp_path / "export"
    write_export(Bundle(make_set(seed=1)), "hf", target)
    with (target / "README.md").open("a") as card:
        card.write("licence: mit\n")
    with pytest.raises(ConfigError, match=r"its README\.md was edited"):
        write_export(Bundle(make_set(seed=2)), "hf", target, force=True)
    (target / "README.md").rename(tmp_path / "kept.md")
    write_export(Bundle(make_set(seed=2)), "hf", target, force=True)
    same(read_set(target).synthetic, make_set(seed=2))


def test_a_file_elsewhere_that_cannot_be_read_is_the_one_that_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=r"elsewhere: No such file.*Nothing was written to .*export"),
        staged_folder(tmp_path / "export", False, irreplaceable),
    ):
        (tmp_path.parent / "elsewhere").read_bytes()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [1, 2])
def test_a_stop_between_the_two_renames_leaves_the_old_export(
    make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    target = tmp_path / "export"
    write_export(Bundle(make_set(seed=1)), "hf", target)
    rename, calls = Path.rename, list[Path]()

    def stopped(self: Path, to: Path) -> Path:
        calls.append(self)
        if len(calls) == number:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_export(Bundle(make_set(seed=2)), "hf", target, force=True)
    same(read_set(target).synthetic, make_set(seed=1))
    assert list(tmp_path.iterdir()) == [target]


def test_a_previous_export_is_replaced_only_with_force(make_set: MakeSet, tmp_path: Path) -> None:
    target = tmp_path / "export"
    target.mkdir()
    write_export(Bundle(make_set(seed=1)), "hf", target)
    with pytest.raises(ConfigError, match=r"holds an export already\. Add --force"):
        write_export(Bundle(make_set(seed=2)), "rded", target)
    same(read_set(target).synthetic, make_set(seed=1))
    write_export(Bundle(make_set(seed=2)), "rded", target, force=True)
    same(read_set(target).synthetic, make_set(seed=2))
    assert list(tmp_path.iterdir()) == [target]
    assert target.stat().st_mode & 0o055 == 0o055, "others may read it, as any folder"


def test_a_failed_export_leaves_the_old_one_and_no_trace(
    make_set: MakeSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "export"
    write_export(Bundle(make_set()), "rded", target)

    def full(image: torch.Tensor) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cudd_core.exchange.tree.encode_png", full)
    for to in (target, tmp_path / "other"):
        with pytest.raises(ResourceError, match="No space left on device"):
            write_export(Bundle(make_set(seed=1)), "sre2l", to, force=True)
    same(read_set(target).synthetic, make_set())
    assert list(tmp_path.iterdir()) == [target]


def test_an_unknown_format_and_an_empty_set(make_set: MakeSet, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"There is no format 'zip'\. Formats: imagefolder, hf"):
        write_export(Bundle(make_set()), "zip", tmp_path / "export")
    with pytest.raises(ConfigError, match="no images"):
        write_export(Bundle(make_set(ipc=0)), "hf", tmp_path / "export")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("objective", "named"), [("cudd", False), ("mtt", True)])
def test_a_card_names_an_objective_that_is_not_the_method_s_own(
    objective: str, named: bool, make_set: MakeSet, tmp_path: Path
) -> None:
    origin = Origin("mine", "r1", "d1", {"synthesis": {"objective": objective}})
    write_export(Bundle(make_set(), origin), "rded", tmp_path / "one")
    text = (tmp_path / "one" / "README.md").read_text()
    assert ("another objective, `mtt`, and the recipe `mine`" in text) == named and "recipe `mine`" in text


def test_a_card_names_what_was_changed_in_the_recipe(make_set: MakeSet, tmp_path: Path) -> None:
    origin = Origin("digits", "r1", "d1", changes=("seed=1", "synthesis.iterations=20"))
    write_export(Bundle(make_set(), origin), "rded", tmp_path / "one")
    text = (tmp_path / "one" / "README.md").read_text()
    assert "with the recipe `digits`, changed by `seed=1`, `synthesis.iterations=20`." in text
    found = read_set(tmp_path / "one")
    assert found.manifest is not None and found.manifest.origin == origin


def test_where_it_came_from_travels_along(make_set: MakeSet, tmp_path: Path) -> None:
    origin = Origin("digits", "r1", "d1", {"dataset": "digits"}, {"teacher": 0.99, "distilled": {}})
    write_export(Bundle(make_set(), origin), "rded", tmp_path / "one")
    found = read_set(tmp_path / "one")
    assert found.manifest is not None and found.manifest.origin == origin
    assert "arXiv:2405.09150" in found.manifest.citation
    write_export(Bundle(make_set()), "rded", tmp_path / "two")
    assert (
        "2405.09150" not in (tmp_path / "two" / "README.md").read_text() + read_set(tmp_path / "two").manifest.citation
    )
