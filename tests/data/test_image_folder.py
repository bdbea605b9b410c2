"""root/split/class/image."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cudd_core.data import encoded, open_split
from cudd_core.data.image_folder import class_order, list_images
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError


@pytest.fixture
def root(tmp_path: Path, files) -> Path:
    for split in ("train", "test"):
        files.write_folder(tmp_path, split, ["cat", "dog"])
    return tmp_path


def _config(root: Path, **changes: object) -> DataConfig:
    return DataConfig(**{"source": "image_folder", "root": str(root), "image_size": 12, **changes})


def test_pixels_are_those_of_the_files(root: Path, files) -> None:
    opened = open_split(_config(root), "train")
    assert opened.class_names == ("cat", "dog")
    assert opened.labels.tolist() == [0] * 4 + [1] * 4
    expected = torch.from_numpy(files.noise(1002, 3)).permute(2, 0, 1)
    assert torch.equal(opened.images(torch.tensor([6]))[0], expected)


def test_class_order() -> None:
    assert class_order(["10", "9", "100", "0"]) == ("0", "9", "10", "100")
    assert class_order(["10", "9", "n1"]) == ("10", "9", "n1")


def test_numeric_folders_sort_numerically(tmp_path: Path, files) -> None:
    files.write_folder(tmp_path, "train", ["10", "9", "1"], per_class=1)
    assert open_split(_config(tmp_path), "train").class_names == ("1", "9", "10")


def test_oblong_images_lose_their_ends(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    stripes = np.zeros((10, 30, 3), dtype=np.uint8)
    stripes[:, 10:20] = 200
    Image.fromarray(stripes).save(folder / "wide.png")
    image = open_split(_config(tmp_path, image_size=8), "train").images(torch.tensor([0]))[0]
    assert (image[:, :, 1:-1] == 200).all()
    assert (image > 150).all()  # the filter reaches half a pixel beyond the cut, as when scaling before cropping


@pytest.mark.parametrize("mode", ["RGBA", "P", "PA", "CMYK"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    image = Image.new("RGB", (8, 8), (255, 0, 0)).convert("P" if mode == "PA" else mode)
    name = "x.tif" if mode == "CMYK" else "x.png"
    image.save(folder / name, **({"transparency": bytes([0, 255])} if mode == "PA" else {}))
    pixels = open_split(_config(tmp_path, image_size=8), "train").images(torch.tensor([0]))[0]
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_sixteen_bit_grey_keeps_its_range(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(folder / "x.png")
    opened = open_split(_config(tmp_path, image_size=8, channels=1), "train")
    assert opened.images(torch.tensor([0])).unique().tolist() == [40000 >> 8]


@pytest.mark.parametrize(
    ("name", "content"),
    [("notes.txt", b"hello"), ("Thumbs.db", b"\xd0\xcf"), ("text.png", b"hello, world"), ("empty.jpg", b"")],
)
def test_a_file_that_is_no_image_is_named(root: Path, name: str, content: bytes) -> None:
    (root / "train" / "dog" / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        open_split(_config(root), "train")


def test_a_truncated_image_is_named_when_decoded(root: Path) -> None:
    path = root / "train" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:-200])
    opened = open_split(_config(root), "train")
    assert opened.images(torch.tensor([0, 1])).shape[0] == 2
    with pytest.raises(DataError, match=r"dog.2\.png.*truncated"):
        opened.images(torch.tensor([6]))


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("sprung"),))


def test_a_pickle_called_png_is_refused_and_not_read(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (root / "train" / "dog" / "2.png").write_bytes(pickle.dumps(_Trap()))
    with pytest.raises(DataError, match=r"dog.2\.png"):
        open_split(_config(root), "train").images(torch.tensor([6]))
    assert not (tmp_path / "sprung").exists()


def test_a_png_called_jpeg_is_read(root: Path) -> None:
    (root / "train" / "dog" / "2.png").rename(root / "train" / "dog" / "2.JPEG")
    assert open_split(_config(root), "train").images(torch.tensor([6])).shape == (1, 3, 12, 12)


def test_dot_files_are_skipped(root: Path) -> None:
    (root / "train" / "dog" / ".DS_Store").write_bytes(b"x")
    (root / "train" / ".hidden").mkdir()
    assert len(open_split(_config(root), "train")) == 8


def test_folder_in_a_class_is_refused(root: Path) -> None:
    (root / "train" / "dog" / "more").mkdir()
    with pytest.raises(DataError, match="more"):
        open_split(_config(root), "train")


def test_greyscale_file_among_colour(root: Path, files) -> None:
    (root / "train" / "dog" / "2.png").write_bytes(files.png(files.noise(0, 1)))
    with pytest.raises(DataError, match=r"dog.2\.png.*data\.channels=1"):
        open_split(_config(root), "train").images(torch.arange(8))


def test_channels_that_disagree_are_told_at_opening(root: Path, tmp_path: Path, files) -> None:
    with pytest.raises(DataError, match=r"cat.0\.png.*colour.*data\.channels=3"):
        open_split(_config(root, channels=1), "train")
    files.write_folder(tmp_path / "grey", "train", ["a"], channels=1)
    with pytest.raises(DataError, match=r"a.0\.png.*greyscale.*data\.channels=1"):
        open_split(_config(tmp_path / "grey"), "train")


def test_images_beside_class_folders_are_refused(root: Path) -> None:
    (root / "test" / "README.txt").write_text("which is no image")
    assert len(open_split(_config(root), "test")) == 8
    (root / "test" / "cat" / "0.png").rename(root / "test" / "stray.PNG")
    with pytest.raises(DataError, match=r"stray\.PNG lies beside class folders, so it has no class"):
        open_split(_config(root), "test")


def test_of_many_classes_some_are_tried_at_opening(tmp_path: Path, files, monkeypatch) -> None:
    monkeypatch.setattr("cudd_core.data.image_folder._TRIED", 3)
    files.write_folder(tmp_path, "train", [f"{n:02d}" for n in range(7)])
    damaged = tmp_path / "train" / "01" / "0.png"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    opened = open_split(_config(tmp_path), "train")  # classes 0, 3 and 6
    with pytest.raises(DataError, match=r"01/0\.png.*truncated"):
        opened.try_images(torch.arange(28))
    damaged.replace(tmp_path / "train" / "03" / "0.png")
    with pytest.raises(DataError, match=r"03/0\.png.*truncated"):
        open_split(_config(tmp_path), "train")


def test_missing_places(root: Path) -> None:
    with pytest.raises(DataError, match=r"'val'.*test, train"):
        open_split(_config(root), "val")
    with pytest.raises(DataError, match="does not exist"):
        open_split(_config(root / "nowhere"), "train")
    with pytest.raises(DataError, match=r"data\.root is empty"):
        open_split(DataConfig(source="image_folder"), "train")


def test_folders_that_cannot_be_read_or_named_are_told(root: Path) -> None:
    os.mkdir(os.fsencode(root / "train") + b"/caf\xe9")
    with pytest.raises(DataError, match=r"name is not UTF-8: b'caf.xe9'\. Rename it"):
        open_split(_config(root), "train")
    os.rmdir(os.fsencode(root / "train") + b"/caf\xe9")
    (root / "train" / "emu").symlink_to(root / "nowhere")
    with pytest.raises(DataError, match=r"train/emu is a link to .*nowhere, which is not there\. Mend or remove it"):
        open_split(_config(root), "train")
    (root / "train" / "emu").unlink()
    named = os.fsencode(root / "train" / "dog") + b"/caf\xe9.png"
    os.link(root / "train" / "dog" / "0.png", named)
    with pytest.raises(DataError, match=r"dog has a file whose name is not UTF-8: b'caf.xe9\.png'\. Rename it"):
        open_split(_config(root), "train")
    os.unlink(named)
    loop = root / "train" / "loop"
    loop.symlink_to(loop)
    with pytest.raises(DataError, match=r"loop cannot be read.*Mend its permissions or link"):
        open_split(_config(root), "train")


def test_splits_must_share_classes(root: Path, files) -> None:
    files.write_folder(root / "more", "test", ["emu"])
    (root / "more" / "test" / "emu").rename(root / "test" / "emu")
    with pytest.raises(DataError, match="emu"):
        open_split(_config(root), "test")


def test_an_empty_class_is_refused_for_training_only(root: Path) -> None:
    for split in ("train", "test"):
        for file in (root / split / "cat").iterdir():
            file.unlink()
    assert open_split(_config(root), "test").labels.tolist() == [1] * 4
    with pytest.raises(DataError, match=r"0 \(cat\)"):
        open_split(_config(root), "train")


def test_new_files_are_noticed(root: Path, files) -> None:
    first = open_split(_config(root), "train")
    os.utime(root / "train" / "dog", ns=(0, 0))
    (root / "train" / "dog" / "9.png").write_bytes(files.png(files.noise(5, 3)))
    second = open_split(_config(root), "train")
    assert len(second) == len(first) + 1
    assert second.digest != first.digest


def test_the_digest_does_not_depend_on_the_place(root: Path) -> None:
    first = open_split(_config(root), "train").digest
    moved = root.rename(root.with_name("moved"))
    assert open_split(_config(moved), "train").digest == first


def test_sets_too_large_for_memory_are_decoded_again(root: Path, monkeypatch) -> None:
    kept = open_split(_config(root), "train").images(torch.tensor([7, 0, 7]))
    monkeypatch.setattr(encoded, "MEMORY_LIMIT", 0)
    opened = open_split(_config(root, limit_per_class=100), "test")
    assert opened.images(torch.tensor([7, 0, 7])).equal(kept)
    (root / "test" / "cat" / "0.png").unlink()
    with pytest.raises(DataError, match=r"cat.0\.png"):
        opened.images(torch.tensor([0]))


def test_greyscale_files_among_colour_ones_are_converted_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(folder / "0.png")
    config = DataConfig(source="image_folder", root=str(tmp_path), image_size=8)
    with pytest.raises(DataError, match=r"greyscale.*data\.greyscale=convert"):
        open_split(config, "train")
    pixels = open_split(config.model_copy(update={"greyscale": "convert"}), "train").images(torch.tensor([0]))
    assert torch.equal(pixels[0], torch.from_numpy(grey).expand(3, 8, 8))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """An archive can hold one, under the name of an image."""
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x.png")
    with pytest.raises(DataError, match=r"x\.png is a pipe or a device"):
        list_images(tmp_path / "a")
