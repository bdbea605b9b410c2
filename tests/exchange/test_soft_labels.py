"""Soft labels: what a script of plain PyTorch replays is what the teacher saw."""

from __future__ import annotations

import importlib
import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.label_shards import StoredLabels
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.replay import LabelledReplay, Replay, ReplayConfig, epoch_order
from cudd_core.exchange import Bundle, Labelling, Origin, write_export
from cudd_core.exchange.bundle import class_major
from cudd_core.labelling import Teaching
from cudd_core.models.registry import build_network
from cudd_core.records import NetworkRecord, NetworkSpec, SoftLabels, SyntheticSet
from cudd_core.stages.relabel import relabel

MakeSet = Callable[..., SyntheticSet]
BATCH, SEED = 4, 3
CONFIGS = {
    "cutmix": ReplayConfig(),
    "mixup": ReplayConfig(mix="mixup", mix_alpha=0.8),
    "none": ReplayConfig(mix="none", flip=False, crop_scale=(0.3, 1.0)),
}


def labelled(
    synthetic: SyntheticSet, config: ReplayConfig, epochs: tuple[range, ...]
) -> tuple[Bundle, list[SoftLabels]]:
    channels, size = synthetic.images.shape[1:3]
    spec = NetworkSpec(
        "convnet2-w4", 3, channels, size, (0.4, 0.5, 0.6)[:channels], (0.2, 0.3, 0.25)[:channels], synthetic.class_names
    )
    network = build_network(spec.arch, 3, channels, size, seed=0)
    teacher = NetworkRecord(spec, network.state_dict())
    runtime = Runtime(ComputeConfig())
    shards = [relabel(Teaching(teacher), synthetic, each, BATCH, config, SEED, runtime) for each in epochs]
    return Bundle(synthetic, teacher=teacher, labelling=Labelling(iter(shards), config, BATCH, SEED, 20.0)), shards


@pytest.mark.parametrize("name", ["imagefolder", "hf"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_plain_pytorch_replays_what_the_teacher_saw(
    make_set: MakeSet, examples: Path, kind: str, name: str, tmp_path: Path
) -> None:
    synthetic = make_set(ipc=3, size=8)  # nine images: the last batch of one joins the one before
    bundle, shards = labelled(synthetic, CONFIGS[kind], (range(0, 2), range(2, 3)))
    write_export(bundle, name, tmp_path / "export")
    order = class_major(synthetic) if name == "imagefolder" else torch.arange(9)
    spec = bundle.teacher.spec if bundle.teacher else None
    assert spec is not None
    images = Normalizer.of(spec)(synthetic.images[order])
    module = importlib.import_module("soft_labels")
    replayed = list(module.soft_batches(tmp_path / "export" / "soft_labels", images, epochs=3))
    walked = Replay(synthetic, spec, CONFIGS[kind], BATCH, SEED, Runtime(ComputeConfig()))
    own = LabelledReplay(walked, StoredLabels(shards, walked.bounds), 3)
    due = [batch for epoch in range(3) for batch in own.epoch(epoch)]
    assert len(replayed) == len(due) == 6
    for (inputs, logits), (due_inputs, due_logits) in zip(replayed, due, strict=True):
        # Two ways to interpolate, in float32; a crop off by a pixel would differ by tenths.
        torch.testing.assert_close(inputs, due_inputs, atol=2e-5, rtol=0)
        assert torch.equal(logits, due_logits.float())
    assert len(list(module.soft_batches(tmp_path / "export" / "soft_labels", images, epochs=2))) == 4
    again = list(module.soft_batches(tmp_path / "export" / "soft_labels", images, epochs=7))
    assert len(again) == 14  # three labelled epochs, from the first again
    for number, (inputs, logits) in enumerate(again):
        assert torch.equal(inputs, replayed[number % 6][0]) and torch.equal(logits, replayed[number % 6][1])


def test_files_and_settings(make_set: MakeSet, tmp_path: Path) -> None:
    synthetic = make_set(size=8, channels=1)
    bundle, _ = labelled(synthetic, CONFIGS["cutmix"], (range(0, 2), range(2, 3)))
    manifest = write_export(bundle, "sre2l", tmp_path / "export")
    folder = tmp_path / "export" / "soft_labels"
    settings = json.loads((folder / "labels.json").read_text())
    assert settings["files"] == ["epochs-00000-00001.safetensors", "epochs-00002-00002.safetensors"]
    assert (settings["epochs"], settings["batches"], settings["temperature"]) == (3, [[0, 4], [4, 6]], 20.0)
    assert settings["augmentation"]["mix"] == "cutmix" and settings["seed"] == SEED
    stored = load_file(folder / settings["files"][0])
    kinds = {name: (str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for name, tensor in stored.items()}
    assert kinds == {
        "logits": ("float16", (2, 6, 3)),
        "order": ("int32", (2, 6)),
        "crop": ("int16", (2, 6, 4)),
        "flip": ("uint8", (2, 6)),
        "partner": ("int32", (2, 6)),
        "box": ("int16", (2, 6, 4)),
        "keep": ("float32", (2, 6)),
    }
    assert sorted(stored["order"][0].tolist()) == list(range(6))
    assert manifest.soft_labels and "soft_labels/" in (tmp_path / "export" / "README.md").read_text()
    assert not any(file.suffix in (".pt", ".pth", ".pkl", ".npy") for file in (tmp_path / "export").rglob("*"))


@pytest.mark.parametrize("words", [[], ["--soft"]])
def test_the_example_trains_on_an_export(
    make_set: MakeSet,
    examples: Path,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Three classes of one colour each: any network that gets their pixels and labels right tells them apart."""
    noisy = make_set(ipc=4, size=8)
    colours = 200 * torch.eye(3, dtype=torch.uint8)[noisy.labels][:, :, None, None]
    # Not in the order in which a test folder lists them.
    names = ("emu", "cat", "dog")
    synthetic = SyntheticSet(**{**vars(noisy), "images": colours + noisy.images % 32, "class_names": names})
    config = ReplayConfig(mix="none")
    orders = [epoch_order(SEED, epoch, 12) for epoch in range(25)]
    # A teacher that is always right and sure.
    logits = torch.stack([100 * torch.eye(3)[synthetic.labels[order]] for order in orders]).half()
    spec = NetworkSpec("convnet2-w4", 3, 3, 8, (0.5,) * 3, (0.5,) * 3, synthetic.class_names)
    labelling = Labelling([SoftLabels(logits, 0)], config, BATCH, SEED, 20.0)
    write_export(Bundle(synthetic, Origin(), NetworkRecord(spec, {}), labelling), "imagefolder", tmp_path / "export")
    for k, name in enumerate(synthetic.class_names):
        (tmp_path / "test" / name).mkdir(parents=True)
        colour = (210 if k == 0 else 10, 210 if k == 1 else 10, 210 if k == 2 else 10)
        Image.new("RGB", (10, 10), colour).save(tmp_path / "test" / name / "0.png")
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "export"), str(tmp_path / "test"), "--epochs", "25", *words])
    with torch.random.fork_rng():
        runpy.run_path(str(examples / "train_plain.py"))
    assert capsys.readouterr().out == f"accuracy 100.0% on 3 images, {'soft' if words else 'hard'} labels\n"
