"""The scripts for files of other repositories: a pickled teacher, and the tensors of a published set."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from cudd_core.data.memory import ArraySplit
from cudd_core.data.normalizer import Normalizer
from cudd_core.exchange import Bundle, read_set, write_export
from cudd_core.models.registry import build_network, restore_network
from cudd_core.records import NetworkRecord, NetworkSpec, SyntheticSet
from cudd_core.stages.load_teacher import load_teacher
from cudd_core.teacher import TeacherConfig

Script = Callable[..., None]
MakeSet = Callable[..., SyntheticSet]

NAMES = ("cat", "dog", "emu", "fox")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NORMALISED = ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)))
AS_PIXELS = ("--mean", "0,0,0", "--std", "1,1,1")


@pytest.fixture
def convert(examples: Path) -> Script:
    return lambda *words: importlib.import_module("convert_teacher").main([str(word) for word in words])


@pytest.fixture
def to_folder(examples: Path) -> Script:
    return lambda *words: importlib.import_module("tensors_to_folder").main([str(word) for word in words])


@pytest.fixture
def split() -> ArraySplit:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), generator=rng, dtype=torch.uint8)
    return ArraySplit(pixels, torch.arange(8) % 4, NAMES)


class FieldConvNet(nn.Module):
    """The ConvNet as DC and MTT write it."""

    def __init__(self, depth: int, width: int, batchnorm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for level in range(depth):
            norm = nn.BatchNorm2d(width) if batchnorm else nn.GroupNorm(width, width)
            layers += [nn.Conv2d(3 if level == 0 else width, width, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * (16 >> depth) ** 2, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


def settings(printed: str) -> dict[str, str]:
    """The `--set teacher.…` that the script prints, as it prints them."""
    return dict(re.findall(r"--set teacher\.(\w+)=(\S+)", printed))


def loaded(printed: str, split: ArraySplit) -> NetworkRecord:
    return load_teacher(TeacherConfig.model_validate(settings(printed)), split)


@pytest.mark.parametrize(
    ("depth", "width", "batchnorm", "arch"),
    [(2, 8, True, "convnet2-w8"), (3, 128, True, "convnet3"), (2, 8, False, "convnet2-w8-in")],
)
def test_a_convnet_of_the_field_gives_the_same_logits_here(
    depth: int,
    width: int,
    batchnorm: bool,
    arch: str,
    convert: Script,
    split: ArraySplit,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FieldConvNet(depth, width, batchnorm)
        network(torch.randn(16, 3, 16, 16))  # statistics that are not those of a new BatchNorm
    network.eval()
    # As a training script leaves it: parallel, and with more in the file than weights.
    state = nn.DataParallel(network).state_dict()
    about = {"args": argparse.Namespace(lr=0.1, out=Path("x")), "best": np.float64(0.5), "epoch": 3}
    torch.save({"state_dict": state, "optimizer": {"state": {}}} | about, tmp_path / "checkpoint.pt")
    convert(
        tmp_path / "checkpoint.pt", "--to", tmp_path / "t.safetensors", *NORMALISED, "--class-names", ",".join(NAMES)
    )
    printed = capsys.readouterr().out
    assert settings(printed) == {"source": "file", "weights": str(tmp_path / "t.safetensors"), "arch": arch}
    assert f"{len(state)} tensors, 4 classes by head.bias" in printed
    teacher = loaded(printed, split)
    assert (teacher.spec.class_names, teacher.spec.mean, teacher.spec.std) == (NAMES, MEAN, STD)
    images = Normalizer(MEAN, STD)(split.pixels)
    with torch.no_grad():
        torch.testing.assert_close(restore_network(teacher)(images), network(images))


def test_a_teacher_exported_for_dd_ranking_comes_back(
    make_set: MakeSet, convert: Script, split: ArraySplit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = NetworkSpec("convnet2", 4, 3, 16, MEAN, STD, NAMES)
    own = NetworkRecord(spec, build_network("convnet2", 4, 3, 16, seed=0).state_dict())
    write_export(Bundle(make_set(NAMES, size=16), teacher=own), "ddranking", tmp_path / "export")
    exported = load_file(tmp_path / "export" / "teacher.safetensors")
    assert "classifier.weight" in exported
    torch.save({"net": exported}, tmp_path / "net.pth")
    (tmp_path / "names.txt").write_text("\n".join(NAMES) + "\n")
    convert(
        *(tmp_path / "net.pth", "--to", tmp_path / "t.safetensors"),
        *(*NORMALISED, "--class-names-file", tmp_path / "names.txt"),
    )
    back = loaded(capsys.readouterr().out, split)
    assert back.spec == own.spec and back.state.keys() == own.state.keys()
    assert all(torch.equal(back.state[name], tensor) for name, tensor in own.state.items())


@pytest.mark.parametrize("arch", ["resnet18-w4", "resnet50-w4"])
def test_resnets_of_pytorch_cifar_get_torchvisions_names(
    arch: str, convert: Script, split: ArraySplit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = build_network(arch, 4, 3, 16, seed=0).state_dict()
    theirs = {re.sub(r"^fc\.", "linear.", name.replace("downsample", "shortcut")): each for name, each in own.items()}
    assert theirs.keys() != own.keys()
    # torch.compile around DataParallel, averaged (torch.optim.swa_utils.AveragedModel).
    wrapped: dict[str, Any] = {f"module._orig_mod.module.{name}": each for name, each in theirs.items()}
    torch.save({"model": wrapped | {"n_averaged": torch.tensor(3)}}, tmp_path / "net.pt")
    convert(tmp_path / "net.pt", "--to", tmp_path / "t.safetensors", *NORMALISED, "--class-names", ",".join(NAMES))
    printed = capsys.readouterr().out
    assert settings(printed)["arch"] == arch
    state = loaded(printed, split).state
    assert all(torch.equal(state[name], tensor) for name, tensor in own.items())


def test_other_structures_keep_their_names_and_what_is_missing_is_told(
    convert: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = {
        f"features.{name}": each
        for name, each in nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).state_dict().items()
    }
    shared = torch.zeros(6, 4).T  # not contiguous, and the same memory twice
    state = grey | {"classifier.weight": shared, "classifier.copy": shared, "classifier.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "net.pt")
    convert(tmp_path / "net.pt", "--to", tmp_path / "t.safetensors")
    printed = capsys.readouterr().out
    assert settings(printed)["arch"] == "NAME" and "cudd archs" in printed
    assert "add --class-names" in printed and "add --mean and --std" in printed
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        assert set(file.keys()) == set(state) and not file.metadata()
        assert torch.equal(file.get_tensor("classifier.weight"), shared)


def test_which_weights_are_meant_is_asked_and_not_guessed(
    convert: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = FieldConvNet(2, 8, True)
    averaged = {name: tensor + 1 for name, tensor in network.state_dict().items()}
    torch.save({"model": network.state_dict(), "ema": averaged}, tmp_path / "both.pt")
    with pytest.raises(SystemExit, match=r"under model and ema\. Choose with --key model"):
        convert(tmp_path / "both.pt", "--to", tmp_path / "t.safetensors")
    with pytest.raises(SystemExit, match=r"no such entry\. It holds model \(OrderedDict\), ema \(dict\)"):
        convert(tmp_path / "both.pt", "--to", tmp_path / "t.safetensors", "--key", "teacher")
    convert(tmp_path / "both.pt", "--to", tmp_path / "t.safetensors", "--key", "ema")
    assert torch.equal(load_file(tmp_path / "t.safetensors")["head.bias"], averaged["classifier.bias"])
    torch.save([[[torch.ones(3)]]], tmp_path / "replay_buffer_0.pt")
    with pytest.raises(SystemExit, match=r"there is a list.*replay_buffer"):
        convert(tmp_path / "replay_buffer_0.pt", "--to", tmp_path / "u.safetensors")


def test_what_does_not_fit_is_refused_before_a_file_is_written(convert: Script, tmp_path: Path) -> None:
    torch.save(FieldConvNet(2, 8, True).state_dict(), tmp_path / "net.pt")
    out = tmp_path / "t.safetensors"
    for problem, words in {
        "3 class names, but head.bias, the last linear layer's, has 4": (out, "--class-names", "a,b,c"),
        "as many values": (out, "--mean", "0.5,0.5,0.5"),
        r"ends in \.safetensors": (tmp_path / "t.pt",),
        "no folder": (tmp_path / "none" / "t.safetensors",),
    }.items():
        with pytest.raises(SystemExit, match=problem):
            convert(tmp_path / "net.pt", "--to", *words)
    with pytest.raises(SystemExit, match="2"):  # argparse's, for pixels up to 255
        convert(tmp_path / "net.pt", "--to", out, "--mean", "120,120,120", "--std", "60,60,60")
    with pytest.raises(SystemExit, match=r"no file .*none\.pt"):
        convert(tmp_path / "none.pt", "--to", out)
    assert not out.exists()
    out.write_bytes(b"mine")
    with pytest.raises(SystemExit, match="a new file"):
        convert(tmp_path / "net.pt", "--to", out)
    assert out.read_bytes() == b"mine"


class Program:
    """What a hostile pickle holds: reading it calls a function."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_no_program_in_a_file_is_run(convert: Script, to_folder: Script, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"state_dict": {"fc.bias": torch.ones(2)}, "more": Program(trap)}, tmp_path / "bad.pt")
    torch.save(nn.Linear(2, 3), tmp_path / "whole.pt")
    for file, named in (("bad.pt", r"posix\.mkdir"), ("whole.pt", r"torch\.nn\.modules\.linear\.Linear")):
        for script in (convert, to_folder):
            words = () if script is convert else NORMALISED
            with pytest.raises(
                SystemExit, match=rf"{file} is refused: to read it, {named} would have to run.*save its"
            ):
                script(tmp_path / file, "--to", tmp_path / "x.safetensors", *words)
    assert not trap.exists()
    torch.load(tmp_path / "bad.pt", weights_only=False)
    assert trap.is_dir()  # the file does hold the program
    (tmp_path / "text.pt").write_text("<html>404</html>")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:500])
    for file in ("text.pt", "empty.pt", "cut.pt"):
        with pytest.raises(SystemExit, match=rf"{file} is damaged, or not a file of torch\.save"):
            convert(tmp_path / file, "--to", tmp_path / "x.safetensors")


def normalised(images: Tensor) -> Tensor:
    return Normalizer(MEAN, STD)(images)


def test_a_published_set_comes_back_as_pictures(
    make_set: MakeSet, to_folder: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_set(tuple("abcdefghijkl"), ipc=3, size=8)
    shuffled = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    images = normalised(whole.images[shuffled]).requires_grad_()  # as MTT saves what it optimises
    torch.save(images, tmp_path / "images_best.pt")
    torch.save(whole.labels[shuffled], tmp_path / "labels_best.pt")
    files = tmp_path / "images_best.pt", tmp_path / "labels_best.pt"
    to_folder(*files, *NORMALISED, "--to", tmp_path / "set")
    assert "36 images of 12 classes, 3 to 3 a class" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "set" / "00011").iterdir()) == [
        "00000.png",
        "00001.png",
        "00002.png",
    ]
    found = read_set(tmp_path / "set")  # what `cudd evaluate` reads
    assert not found.named and len(found.synthetic.class_names) == 12
    folder = ImageFolder(tmp_path / "set")
    theirs = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image, _ in folder])
    assert folder.targets == sorted(whole.labels.tolist())
    for label in range(12):
        due = whole.images[shuffled][whole.labels[shuffled] == label].int()
        own = found.synthetic.images[found.synthetic.labels == label].int()
        assert (own - due).abs().max() <= 1
        assert torch.equal(own, theirs[torch.tensor(folder.targets) == label].int())


def test_given_names_become_the_folders(make_set: MakeSet, to_folder: Script, tmp_path: Path) -> None:
    whole = make_set(("cat", "dog", "emu"), ipc=2, size=8, channels=1)
    torch.save({"images": whole.images / 255, "labels": whole.labels.int()}, tmp_path / "set.pt")
    words = tmp_path / "set.pt", "--mean", "0", "--std", "1", "--class-names"
    to_folder(*words, "cat,dog,emu", "--to", tmp_path / "named")
    found = read_set(tmp_path / "named")
    assert found.named and found.synthetic.class_names == ("cat", "dog", "emu")
    order = torch.argsort(whole.labels, stable=True)
    mine = torch.argsort(found.synthetic.labels, stable=True)
    assert torch.equal(found.synthetic.images[mine], whole.images[order])
    for names, problem in {
        "dog,cat,emu": "in the order of text",
        "cat,cat,emu": "different",
        "../x,dog,emu": "no name for a folder",
        "cat,dog": "2 class names, but the labels have 3",
    }.items():
        with pytest.raises(SystemExit, match=problem):
            to_folder(*words, names, "--to", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_pairs_of_dc_are_told_apart(
    make_set: MakeSet, to_folder: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = make_set(size=8, seed=0), make_set(size=8, seed=1)
    data = [[normalised(each.images), each.labels] for each in (first, second)]
    torch.save({"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.5)]}}, tmp_path / "res.pt")
    with pytest.raises(SystemExit, match=r"there are 2 in: data\.0\.0 \[6, 3, 8, 8\] float32.*--key"):
        to_folder(tmp_path / "res.pt", *NORMALISED, "--to", tmp_path / "set")
    to_folder(tmp_path / "res.pt", *NORMALISED, "--to", tmp_path / "set", "--key", "data.1")
    synthetic = read_set(tmp_path / "set").synthetic
    order = torch.argsort(synthetic.labels, stable=True)
    due = second.images[torch.argsort(second.labels, stable=True)]
    assert (synthetic.images[order].int() - due.int()).abs().max() <= 1
    assert "soft" not in capsys.readouterr().out


@pytest.mark.parametrize("soft", [False, True])
def test_soft_labels_become_classes_and_that_is_told(
    soft: bool, make_set: MakeSet, to_folder: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_set(size=8)
    one_hot = F.one_hot(whole.labels, 3).float()
    torch.save((normalised(whole.images), 3 * one_hot - 1 if soft else one_hot), tmp_path / "set.pt")
    to_folder(tmp_path / "set.pt", *NORMALISED, "--to", tmp_path / "set")
    assert ("The labels are soft" in capsys.readouterr().out) == soft
    assert torch.bincount(read_set(tmp_path / "set").synthetic.labels).tolist() == [2, 2, 2]


def test_labels_that_do_not_name_a_class_for_each_image_are_refused(
    make_set: MakeSet, to_folder: Script, tmp_path: Path
) -> None:
    images = normalised(make_set(size=8).images)
    for labels, problem in (
        (torch.arange(5), r"One tensor of labels, \[6\] or \[6, K\], is needed; there are 0"),
        (torch.tensor([0, 0, 1, 1, 3, 3]), "Class 2 of 4 has no images"),
        (torch.tensor([-1, 0, 0, 1, 1, 1]), "negative"),
        (torch.full((6, 3), 1 / 3), "without one largest entry"),
    ):
        torch.save((images, labels), tmp_path / "set.pt")
        with pytest.raises(SystemExit, match=problem):
            to_folder(tmp_path / "set.pt", *NORMALISED, "--to", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_the_clipped_share_is_told(
    make_set: MakeSet, to_folder: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = make_set(size=8)
    images = whole.images / 255
    images.view(-1)[:115] = 1.5  # 115 of 1152 values
    torch.save((images, whole.labels), tmp_path / "set.pt")
    to_folder(tmp_path / "set.pt", *AS_PIXELS, "--to", tmp_path / "set")
    assert re.search(r"to 1\.50; 9\.98% of them were outside \[0, 1\] and are clipped", capsys.readouterr().out)
    assert (read_set(tmp_path / "set").synthetic.images == 255).sum() >= 115
    with pytest.raises(SystemExit, match=r"is there already"):
        to_folder(tmp_path / "set.pt", *AS_PIXELS, "--to", tmp_path / "set")
    torch.save((images / 0, whole.labels), tmp_path / "infinite.pt")
    with pytest.raises(SystemExit, match="not finite"):
        to_folder(tmp_path / "infinite.pt", *AS_PIXELS, "--to", tmp_path / "other")


def whitened(images: Tensor) -> Tensor:
    """ZCA as MTT has it done (kornia, ε = 0.1) to images [n, C, H, W] in [0, 1]."""
    flat = images.flatten(1)
    values, vectors = torch.linalg.eigh(torch.cov(flat.T))
    matrix = vectors @ torch.diag((values.clamp(min=0) + 0.1) ** -0.5) @ vectors.T
    white: Tensor = (flat - flat.mean(0)) @ matrix
    return white.view_as(images)


def test_whitened_images_and_wrong_constants_are_refused(
    to_folder: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = torch.Generator().manual_seed(0)
    coarse, brightness = torch.rand(400, 3, 4, 4, generator=rng), torch.rand(400, 1, 1, 1, generator=rng)
    images = F.interpolate(0.3 * coarse + 0.7 * brightness, size=8, mode="bilinear")  # neighbours alike, as in pictures
    labels = torch.arange(400) % 4
    for name, tensor in {"plain": images, "white": whitened(images)}.items():
        torch.save((tensor, labels), tmp_path / f"{name}.pt")
    to_folder(tmp_path / "plain.pt", *AS_PIXELS, "--to", tmp_path / "plain")
    assert "equally bright" not in capsys.readouterr().out
    for file, words, sign in (
        ("white.pt", AS_PIXELS, r"\d\d% are outside"),
        ("white.pt", NORMALISED, r"deviation is 0\.0"),
        ("plain.pt", NORMALISED, r"deviation is 0\.0"),  # in [0, 1] already
    ):
        with pytest.raises(SystemExit, match=rf"{sign}.*ZCA-whitened.*images_zca_\*\.pt.*--clip"):
            to_folder(tmp_path / file, *words, "--to", tmp_path / "set")
    assert not (tmp_path / "set").exists()
    to_folder(tmp_path / "white.pt", *NORMALISED, "--to", tmp_path / "set", "--clip")
    assert (tmp_path / "set" / "00003" / "00099.png").is_file()
    # Noise is what many sets begin with, so that it is no reason to refuse one.
    torch.save((torch.randn(400, 3, 16, 16, generator=rng), labels), tmp_path / "noise.pt")
    to_folder(tmp_path / "noise.pt", *NORMALISED, "--to", tmp_path / "noise")
    assert "equally bright" in capsys.readouterr().out


def test_metadata_are_json_lists(convert: Script, tmp_path: Path) -> None:
    torch.save(FieldConvNet(2, 8, True).state_dict(), tmp_path / "net.pt")
    (tmp_path / "names.json").write_text('["a, b", "c", "d", "é"]')
    convert(
        *(tmp_path / "net.pt", "--to", tmp_path / "t.safetensors"),
        *(*NORMALISED, "--class-names-file", tmp_path / "names.json"),
    )
    with safe_open(tmp_path / "t.safetensors", framework="pt") as file:
        told = {key: json.loads(value) for key, value in file.metadata().items()}
    assert told == {"class_names": ["a, b", "c", "d", "é"], "mean": list(MEAN), "std": list(STD)}
