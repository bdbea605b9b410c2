"""DD-Ranking: the tensors it takes; with CUDD_TEST_DDRANKING, its own package reads them and returns a score."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cudd_core.data.normalizer import Normalizer
from cudd_core.exchange import Bundle, Origin, read_set, write_export
from cudd_core.exchange.bundle import class_major
from cudd_core.models.registry import build_network, restore_network
from cudd_core.records import NetworkRecord, NetworkSpec, SyntheticSet

MakeSet = Callable[..., SyntheticSet]
NAMES = tuple(f"class {k}" for k in range(10))
CIFAR = Origin("own", "r1", "d1", {"dataset": "CIFAR-10"})


def teacher_of(arch: str, channels: int = 3, size: int = 32) -> NetworkRecord:
    network = build_network(arch, 10, channels, size, seed=0)
    spec = NetworkSpec(arch, 10, channels, size, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], NAMES)
    return NetworkRecord(spec, network.state_dict())


def test_tensors_are_what_dd_ranking_takes(make_set: MakeSet, tmp_path: Path) -> None:
    whole, teacher = make_set(NAMES, size=32), teacher_of("convnet3")
    write_export(Bundle(whole, CIFAR, teacher), "ddranking", tmp_path / "export")
    data = load_file(tmp_path / "export" / "data.safetensors")
    settings = json.loads((tmp_path / "export" / "ddranking.json").read_text())
    order = class_major(whole)
    # By class, the same number of each: its evaluators count on that.
    assert data["labels"].tolist() == [k for k in range(10) for _ in range(2)]
    assert (settings["dataset"], settings["ipc"], settings["num_classes"]) == ("CIFAR10", 2, 10)
    assert data["images"].dtype == torch.float32
    back = Normalizer(tuple(settings["mean"]), tuple(settings["std"])).to_uint8(data["images"])
    assert torch.equal(back, whole.images[order])
    # One fixed view an image, as the teacher sees it.
    seen = Normalizer.of(teacher.spec)(whole.images[order])
    assert torch.equal(data["soft_labels"], restore_network(teacher)(seen))
    assert settings["teacher"] == {
        "model_name": "ConvNet-3-BN",
        "use_torchvision": False,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.25],
    }
    state = load_file(tmp_path / "export" / "teacher.safetensors")
    assert torch.equal(state["classifier.weight"], teacher.state["head.weight"]) and "head.weight" not in state


@pytest.mark.parametrize(
    ("arch", "name"), [("convnet4-w128", "ConvNet-4-BN"), ("resnet18", "ResNet-18-BN"), ("convnet3-w64", None)]
)
def test_teachers_that_dd_ranking_knows(make_set: MakeSet, arch: str, name: str | None, tmp_path: Path) -> None:
    write_export(Bundle(make_set(NAMES, ipc=1, size=32), CIFAR, teacher_of(arch)), "ddranking", tmp_path / "export")
    teacher = json.loads((tmp_path / "export" / "ddranking.json").read_text())["teacher"]
    assert (teacher["model_name"] if teacher else None) == name
    assert (tmp_path / "export" / "teacher.safetensors").exists() == (name is not None)
    assert "soft_labels" in load_file(tmp_path / "export" / "data.safetensors")


def test_the_evaluation_s_temperature_goes_along(make_set: MakeSet, tmp_path: Path) -> None:
    for number, (config, due) in enumerate([({"evaluation": {"temperature": 4.0}}, 4.0), ({}, 20.0)]):
        write_export(Bundle(make_set(), Origin("own", "r1", "d1", config)), "ddranking", tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / "ddranking.json").read_text())["temperature"] == due


def test_greyscale_becomes_colour_and_without_a_teacher_labels_are_hard(make_set: MakeSet, tmp_path: Path) -> None:
    write_export(Bundle(make_set(channels=1)), "ddranking", tmp_path / "export")
    data = load_file(tmp_path / "export" / "data.safetensors")
    assert data["images"].shape == (6, 3, 9, 9) and set(data) == {"images", "labels"}
    assert json.loads((tmp_path / "export" / "ddranking.json").read_text())["dataset"] == ""
    assert read_set(tmp_path / "export").synthetic.images.shape == (6, 1, 9, 9)


def test_order_does_not_depend_on_how_the_set_lies_in_memory(make_set: MakeSet, tmp_path: Path) -> None:
    whole = make_set()
    turned = replace(whole, images=whole.images.to(memory_format=torch.channels_last))
    for name, each in (("one", whole), ("two", turned)):
        write_export(Bundle(each), "ddranking", tmp_path / name)
    assert (tmp_path / "one" / "data.safetensors").read_bytes() == (tmp_path / "two" / "data.safetensors").read_bytes()


STAND_IN = '''
import runpy, sys, torch, torchvision

class CIFAR10(torch.utils.data.Dataset):
    """Noise in place of a download."""

    def __init__(self, root, train=True, download=False, transform=None):
        self.targets = [i % 10 for i in range(40)]
        self.transform = transform

    def __len__(self):
        return 40

    def __getitem__(self, i):
        pixels = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        return self.transform(torchvision.transforms.functional.to_pil_image(pixels)), self.targets[i]

torchvision.datasets.CIFAR10 = CIFAR10
torch.set_num_threads(1)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
'''


@pytest.mark.skipif(
    not os.environ.get("CUDD_TEST_DDRANKING"),
    reason="set CUDD_TEST_DDRANKING to the Python of an environment with ddranking==0.2.0",
)
@pytest.mark.parametrize("labels", ["hard", "fixed", "teacher"])
def test_dd_ranking_returns_a_score(make_set: MakeSet, labels: str, tmp_path: Path) -> None:
    whole, teacher = make_set(NAMES, size=32, ipc=1), teacher_of("convnet3")
    write_export(Bundle(whole, CIFAR, teacher), "ddranking", tmp_path / "export")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    command = [os.environ["CUDD_TEST_DDRANKING"], "stand_in.py", "export/score.py", "--real", ".", "--labels", labels]
    tiny = ["--epochs", "1", "--evals", "1", "--full-accuracy", "80", "--device", "cpu"]
    done = subprocess.run([*command, *tiny], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores = json.loads(done.stdout[done.stdout.rindex("{") :])
    assert -100 <= scores["improvement_over_random_mean"] <= 100 and 0 <= scores["label_robust_score_of_fractions"] <= 1
