"""What every source promises."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from cudd_core.data import SOURCES, decode_ahead, forget_splits, open_split
from cudd_core.data.memory import ArraySplit
from cudd_core.data.source import DataConfig, ImageSplit

CASES = [
    "digits",
    "image_folder",
    "image_folder_grey",
    "hf_parquet",
    "hf_parquet_plain",
    "hf_parquet_many",
    "tiny_imagenet",
    "imagenet",
    "torchvision",
]


@pytest.fixture(params=CASES)
def config(request, tmp_path: Path, files, three_classes, monkeypatch) -> DataConfig:
    case = request.param
    if case == "digits":
        return DataConfig(source="digits", channels=1, image_size=8)
    common = {"root": str(tmp_path), "image_size": 8}
    if case.startswith("image_folder"):
        channels = 1 if case.endswith("grey") else 3
        for split in ("train", "test"):
            files.write_folder(tmp_path, split, ["cat", "dog", "emu"], channels=channels)
        return DataConfig(source="image_folder", channels=channels, **common)
    if case == "torchvision":
        monkeypatch.setattr("torchvision.datasets.CIFAR10", _fake_cifar())
        return DataConfig(source="torchvision", name="CIFAR10", **common)
    if case == "tiny_imagenet":
        for name in ("cat", "dog", "emu"):
            files.write_folder(tmp_path / "train", name, ["images"])
        files.write_folder(tmp_path, "val", ["images"], per_class=12)
        lines = [f"{number}.png\t{('cat', 'dog', 'emu')[number % 3]}" for number in range(12)]
        (tmp_path / "val" / "val_annotations.txt").write_text("\n".join(lines))
        (tmp_path / "wnids.txt").write_text("emu\ncat\ndog\n")
        return DataConfig(source="tiny_imagenet", test_split="val", **common)
    if case == "imagenet":
        for split in ("train", "val"):
            files.write_folder(tmp_path, split, ["n00000001", "n00000002", "n00000003"])
        return DataConfig(source="imagenet", test_split="val", **common)
    images, labels = three_classes(4, 3)
    if case == "hf_parquet":
        for split in ("train", "test"):
            files.write_parquet(tmp_path / f"{split}-00000-of-00001.parquet", images, labels, ["a", "b", "c"])
    elif case == "hf_parquet_plain":
        for split in ("train", "test"):
            files.write_parquet(tmp_path / "data" / f"{split}-0.parquet", images, labels, nested=False)
    else:
        for split in ("train", "test"):
            for shard in range(3):
                part = slice(4 * shard, 4 * shard + 4)
                path = tmp_path / f"{split}-{shard:05}-of-00003.parquet"
                files.write_parquet(path, images[part], labels[part], ["a", "b", "c"])
    return DataConfig(source="hf_parquet", **common)


def _fake_cifar() -> type:
    from torchvision.datasets import FakeData, VisionDataset

    class CIFAR10(VisionDataset):
        classes = ("plane", "car", "bird")

        def __init__(self, root: str, train: bool = True) -> None:
            super().__init__(root)
            self.data = FakeData(12, (3, 10, 10), 3, random_offset=0 if train else 100)

        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> tuple[object, int]:
            if index >= 12:
                raise IndexError
            return self.data[index][0], index % 3

    return CIFAR10


def test_every_source_is_covered() -> None:
    assert {next(name for name in sorted(SOURCES, key=len) if case.startswith(name)) for case in CASES} == set(SOURCES)


@pytest.mark.parametrize("split", ["train", "test"])
def test_shapes_types_and_ranges(config: DataConfig, split: str) -> None:
    opened = open_split(config, config.train_split if split == "train" else config.test_split)
    count = len(opened)
    images = opened.images(torch.arange(count))
    assert images.dtype == torch.uint8
    assert images.shape == (count, config.channels, config.image_size, config.image_size)
    assert images.float().std() > 1
    assert opened.channels == config.channels
    assert opened.image_size == config.image_size
    assert opened.labels.dtype == torch.int64
    assert opened.labels.shape == (count,)
    assert opened.labels.unique().tolist() == list(range(len(opened.class_names)))
    assert len(opened.digest) == 64
    assert all(isinstance(name, str) for name in opened.class_names)


def test_images_follow_the_indices(config: DataConfig) -> None:
    opened = open_split(config, "train")
    some = opened.images(torch.tensor([5, 0, 5, 11]))  # before everything is decoded
    everything = opened.images(torch.arange(len(opened)))
    assert torch.equal(some, everything[[5, 0, 5, 11]])
    assert torch.equal(some[0], some[2])
    assert not torch.equal(some[0], some[1])
    assert opened.images(torch.empty(0, dtype=torch.int64)).shape == (0, *everything.shape[1:])


def test_what_is_returned_is_a_copy(config: DataConfig) -> None:
    opened = open_split(config, "train")
    before = opened.images(torch.tensor([0])).clone()
    opened.images(torch.tensor([0])).zero_()
    assert torch.equal(opened.images(torch.tensor([0])), before)


def test_equal_configurations_share_one_split(config: DataConfig) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_split(config, "train"), range(4)))
    assert all(one is opened[0] for one in opened)
    assert open_split(config, config.test_split) is not opened[0]


def test_a_source_that_is_added_reads_a_changed_file_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def open_added(config: DataConfig, split: str) -> ArraySplit:
        value = int((Path(config.root) / f"{split}.txt").read_text())
        return ArraySplit(torch.full((2, 1, 8, 8), value, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))

    monkeypatch.setitem(SOURCES, "added", open_added)
    config = DataConfig(root=str(tmp_path)).model_copy(update={"source": "added"})
    (tmp_path / "train.txt").write_text("1")
    first = open_split(config, "train")
    assert open_split(config, "train") is first
    (tmp_path / "train.txt").write_text("200")
    assert int(open_split(config, "train").images(torch.tensor([0])).max()) == 200


def test_threads_get_the_same_images(config: DataConfig) -> None:
    opened = open_split(config, "train")
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda _: opened.images(torch.arange(12)), range(4)))
    assert all(torch.equal(one, images[0]) for one in images)


def test_the_digest_is_repeatable_and_depends_on_how_images_are_read(config: DataConfig) -> None:
    first = open_split(config, "train").digest
    forget_splits()
    assert open_split(config, "train").digest == first
    others = [
        open_split(config.model_copy(update={"image_size": 9}), "train"),
        open_split(config.model_copy(update={"limit_per_class": 2}), "train"),
        open_split(config.model_copy(update={"limit_per_class": 3}), "train"),
    ]
    assert len({first, *(other.digest for other in others)}) == 4


def test_limit_takes_the_first_of_each_class(config: DataConfig) -> None:
    whole = open_split(config, "train")
    limited: ImageSplit = open_split(config.model_copy(update={"limit_per_class": 2}), "train")
    expected = sorted(
        i for label in whole.labels.unique() for i in torch.nonzero(whole.labels == label)[:2, 0].tolist()
    )
    assert limited.labels.tolist() == whole.labels[expected].tolist()
    assert torch.equal(limited.images(torch.arange(len(limited))), whole.images(torch.tensor(expected)))
    assert torch.bincount(limited.labels).tolist() == [2] * len(whole.class_names)
    assert limited.class_names == whole.class_names


@pytest.mark.parametrize("limit", [0, 2])
def test_a_folder_of_decoded_images_changes_nothing(config: DataConfig, tmp_path: Path, limit: int) -> None:
    config = config.model_copy(update={"limit_per_class": limit})
    plain = open_split(config, "train")
    digest, labels, images = plain.digest, plain.labels, plain.images(torch.arange(len(plain)))
    for _ in range(2):  # filled, then read
        forget_splits()
        opened = open_split(config, "train", tmp_path / "decoded")
        decode_ahead(opened)
        assert opened.digest == digest and torch.equal(opened.labels, labels)
        assert torch.equal(opened.images(torch.arange(len(opened)).flip(0)), images.flip(0))
    assert (tmp_path / "decoded").exists() == config.keeps_decoded


def test_global_generators_play_no_part(config: DataConfig) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    digest = open_split(config, "train").digest
    if config.source != "torchvision":  # the stand-in data set seeds the global generator itself
        assert torch.equal(torch.get_rng_state(), state)
    forget_splits()
    torch.manual_seed(2)
    assert open_split(config, "train").digest == digest
