"""Decoded images on disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cudd_core.data.decoded
from cudd_core.data import decode_ahead, encoded, forget_splits, open_split
from cudd_core.data.decoded import leave_room, reserve
from cudd_core.data.source import DataConfig

ALL = torch.arange(12)


@pytest.fixture(params=[12, 72])  # images read all at once, and one by one in threads
def config(request: pytest.FixtureRequest, tmp_path: Path, files) -> DataConfig:
    files.write_folder(tmp_path / "data", "train", ["cat", "dog", "emu"])
    return DataConfig(source="image_folder", root=str(tmp_path / "data"), image_size=request.param)


@pytest.fixture
def decoded(tmp_path: Path) -> Path:
    return tmp_path / "decoded"


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the images that were really decoded."""
    names: list[str] = []
    decode = encoded.decode

    def counted(data: bytes, name: str, how: object) -> torch.Tensor:
        names.append(name)
        return decode(data, name, how)

    monkeypatch.setattr(encoded, "decode", counted)
    return names


@pytest.fixture(autouse=True)
def _room(monkeypatch: pytest.MonkeyPatch) -> None:
    """However full the machine's disk is, and whatever a run of this process has yet to store."""
    free(monkeypatch, 10**12)
    monkeypatch.setattr(cudd_core.data.decoded, "_due", (-1, 0))


def free(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**12, used=0, free=number))


def again(config: DataConfig, decoded: Path | None) -> torch.Tensor:
    """What a process that starts now sees."""
    forget_splits()
    return open_split(config, "train", decoded).images(ALL)


def test_it_changes_neither_pixels_nor_digest(config: DataConfig, decoded: Path) -> None:
    plain = open_split(config, "train")
    digest, pixels = plain.digest, plain.images(ALL)
    assert torch.equal(again(config, decoded), pixels)
    assert torch.equal(again(config, decoded), pixels)
    assert open_split(config, "train", decoded).digest == digest


def test_files_older_than_the_clock_of_the_system_are_kept_too(
    config: DataConfig, decoded: Path, count: list[str]
) -> None:
    for file in Path(config.root).rglob("*.png"):
        os.utime(file, (-86_400, -86_400))
    pixels = again(config, decoded)
    seen = len(count)
    assert torch.equal(again(config, decoded), pixels) and len(count) - seen < seen


def test_each_image_is_decoded_once_for_all_processes(config: DataConfig, decoded: Path, count: list[str]) -> None:
    again(config, decoded)
    first = len(count)
    again(config, decoded)
    # Opening looks at the first image of each class before it is told of the folder.
    assert first == 12 + 3 and len(count) == first + 3
    assert (decoded / os.listdir(decoded)[0] / "pixels.bin").stat().st_size == 12 * 3 * config.image_size**2


def test_threads_that_fill_it_agree(config: DataConfig, decoded: Path) -> None:
    expected = open_split(config, "train").images(ALL)
    forget_splits()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: open_split(config, "train", decoded).images(ALL), range(8)))
    assert all(torch.equal(one, expected) for one in found)


def test_another_process_reads_and_fills_it_too(config: DataConfig, decoded: Path, count: list[str]) -> None:
    program = (
        "import shutil, sys, torch; from pathlib import Path; from types import SimpleNamespace\n"
        "from cudd_core.data import open_split\n"
        "shutil.disk_usage = lambda _: SimpleNamespace(total=10**12, used=0, free=10**12)\n"
        "from cudd_core.data.source import DataConfig\n"
        "config = DataConfig.model_validate_json(sys.argv[1])\n"
        "open_split(config, 'train', Path(sys.argv[2])).images(torch.arange(8))"
    )
    subprocess.run([sys.executable, "-c", program, config.model_dump_json(), str(decoded)], check=True)
    cached = again(config, decoded)
    assert len(count) == 3 + 4
    assert torch.equal(cached, again(config, None))


@pytest.mark.parametrize("file", ["pixels.bin", "index.bin"])
def test_a_damaged_image_is_decoded_again(config: DataConfig, decoded: Path, file: str, count: list[str]) -> None:
    expected = again(config, decoded)
    (path,) = decoded.glob(f"*/{file}")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = len(count)
    assert torch.equal(again(config, decoded), expected)
    assert len(count) == before + 3 + 1
    assert torch.equal(again(config, decoded), expected)
    assert len(count) == before + 3 + 1 + 3


@pytest.mark.parametrize("size", [0, 100])
def test_a_file_cut_short_is_filled_again(config: DataConfig, decoded: Path, size: int) -> None:
    expected = again(config, decoded)
    (path,) = decoded.glob("*/pixels.bin")
    os.truncate(path, size)
    assert torch.equal(again(config, decoded), expected)


def test_a_file_overwritten_in_place_is_noticed(config: DataConfig, decoded: Path, files) -> None:
    before = again(config, decoded)
    path = Path(config.root) / "train" / "dog" / "2.png"
    size = path.stat().st_size
    new = next(data for seed in range(9000, 9999) if len(data := files.png(files.noise(seed, 3))) == size)
    path.write_bytes(new)
    os.utime(path, (1, 1))
    after = again(config, decoded)
    assert torch.equal(after, again(config, None))
    assert [i for i in range(12) if not torch.equal(before[i], after[i])] == [6]


def test_a_file_overwritten_while_it_is_decoded_is_decoded_again(
    config: DataConfig, decoded: Path, files, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(config.root) / "train" / "dog" / "2.png"
    size = path.stat().st_size
    new = next(data for seed in range(9000, 9999) if len(data := files.png(files.noise(seed, 3))) == size)
    decode = encoded.decode

    def overwritten(data: bytes, name: str, how: object) -> torch.Tensor:
        pixels = decode(data, name, how)
        if name == str(path) and path.read_bytes() != new:
            path.write_bytes(new)
            os.utime(path, (1, 1))
        return pixels

    with monkeypatch.context() as patch:
        patch.setattr(encoded, "decode", overwritten)
        open_split(config, "train", decoded).images(ALL)
    assert torch.equal(again(config, decoded), again(config, None))


def test_other_ways_of_decoding_have_folders_of_their_own(config: DataConfig, decoded: Path) -> None:
    for changes in ({}, {"image_size": 8}, {"greyscale": "convert"}):
        again(config.model_copy(update=changes), decoded)
    assert len(os.listdir(decoded)) == 3
    again(config.model_copy(update={"root": str(config.root) + "/"}), decoded)
    assert len(os.listdir(decoded)) == 3


def test_the_switch(config: DataConfig, decoded: Path) -> None:
    again(config.model_copy(update={"cache": False}), decoded)
    assert not decoded.exists()


def test_a_limited_split_fills_what_it_uses(config: DataConfig, decoded: Path, count: list[str]) -> None:
    limited = config.model_copy(update={"limit_per_class": 2})
    split = open_split(limited, "train", decoded)
    decode_ahead(split)
    assert len(count) == 3 + 6
    assert torch.equal(split.images(torch.arange(6)), again(config, None)[[0, 1, 4, 5, 8, 9]])
    count.clear()
    again(config, decoded)
    assert len(count) == 3 + 6


def test_decoding_ahead_reports_and_stops_when_told(config: DataConfig, decoded: Path, count: list[str]) -> None:
    split = open_split(config, "train", decoded)
    split._part = 5
    seen: list[tuple[int, int]] = []

    def stop(done: int, total: int, _: object) -> None:
        seen.append((done, total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_ahead(split, stop)
    done = seen[-1][0]
    assert seen[-1][1] == 12 and len(count) == 3 + done
    seen.clear()
    count.clear()
    decode_ahead(split, lambda done, total, _: seen.append((done, total)))
    assert seen[-1] == (12 - done, 12 - done) and len(count) == 12 - done
    count.clear()
    split.images(ALL)
    assert not count


def test_without_room_images_are_decoded_and_the_log_says_so(
    config: DataConfig,
    decoded: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    count: list[str],
) -> None:
    expected = again(config, None)
    free(monkeypatch, reserve(10**12) + 100)
    count.clear()
    assert torch.equal(again(config, decoded), expected)
    split = open_split(config, "train", decoded)
    assert torch.equal(split.images(ALL), expected)
    count.clear()
    assert torch.equal(split.images(ALL), expected)
    assert not count, "memory keeps what the disk does not"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "100.0 GB stay free" in caplog.text


def test_room_is_left_for_what_the_run_has_yet_to_store(
    config: DataConfig, decoded: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Images are decoded first, labels come days later: both find the same disk empty."""
    expected = again(config, None)
    decoded.mkdir(exist_ok=True)
    free(monkeypatch, reserve(10**12) + 2 * 10**9)
    leave_room(decoded, 2 * 10**9)
    assert torch.equal(again(config, decoded), expected)
    assert "102.0 GB are free, 102.0 GB stay free" in caplog.text
    caplog.clear()
    leave_room(Path("/proc"), 2 * 10**9)  # another disk
    assert torch.equal(again(config, decoded), expected)
    assert not caplog.records


def test_a_disk_that_fills_up_while_writing(
    config: DataConfig, decoded: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = again(config, None)
    write, calls = os.pwrite, []

    def full(file: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 7:
            raise OSError(28, "No space left on device")
        return write(file, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert torch.equal(again(config, decoded), expected)
    assert "No space left on device" in caplog.text
    monkeypatch.setattr(os, "pwrite", write)
    assert torch.equal(again(config, decoded), expected)


def test_a_folder_that_cannot_be_made(config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    assert torch.equal(again(config, tmp_path / "file" / "decoded"), again(config, None))
    assert "decoded images are not kept" in caplog.text


def test_reserve() -> None:
    assert reserve(100 * 10**9) == 10 * 10**9
    assert reserve(10**13) == 10**11
