"""DD-Ranking's inputs: a normalised float tensor, an ImageFolder, one soft label per image, and a scoring script.

For DD-Ranking 0.2.0 (github.com/NUS-HPC-AI-Lab/DD-Ranking). It takes images sorted by class, the same number for each,
and colour images only; greyscale ones are repeated over three channels in the tensor.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cudd_core.data.normalizer import Normalizer
from cudd_core.errors import ConfigError
from cudd_core.exchange import rded
from cudd_core.exchange.bundle import Bundle, Written
from cudd_core.exchange.foreign import read_class_folders
from cudd_core.exchange.tree import digits, write_tree
from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord, SyntheticSet
from cudd_core.tensor_files import write_tensors

ROOT = "images"
SETTINGS_FILE = "ddranking.json"
DATA_FILE = "data.safetensors"
TEACHER_FILE = "teacher.safetensors"
SCRIPT = "score.py"

_DATASETS = {
    "CIFAR-10": "CIFAR10",
    "CIFAR-100": "CIFAR100",
    "Tiny-ImageNet": "TinyImageNet",
    "ImageNet-1K": "ImageNet1K",
}
# The (mean, std) that DD-Ranking normalises real images with; synthetic ones must be on the same scale.
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_CONVNET = re.compile(r"convnet(\d)(?:-w128)?")
_RESNET = re.compile(r"resnet(18|34|50)")
_BATCH = 256


def write(bundle: Bundle, folder: Path) -> Written:
    """Write tensor, images, labels, the teacher if DD-Ranking has its architecture, and the script.

    Raises:
        ConfigError: classes have different numbers of images.
    """
    synthetic = bundle.synthetic
    classes = len(synthetic.class_names)
    counts = torch.bincount(synthetic.labels, minlength=classes)
    if len(torch.unique(counts)) != 1:
        raise ConfigError(
            f"DD-Ranking needs the same number of images in every class; here they have {int(counts.min())} to "
            f"{int(counts.max())}. Choose another format."
        )
    width = digits(len(synthetic.labels), 5)
    folders = [f"{label:0{digits(classes, 5)}d}" for label in range(classes)]
    written = write_tree(synthetic, folder, ROOT, folders, lambda label, rank: f"{rank:0{width}d}")

    dataset = _DATASETS.get(bundle.origin.dataset, "")
    mean, std = _CIFAR if dataset.startswith("CIFAR") else _IMAGENET
    images = synthetic.images[written.order]
    colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    data = {"images": Normalizer(mean, std)(colour), "labels": synthetic.labels[written.order]}
    settings: dict[str, Any] = {
        "dataset": dataset,
        "ipc": int(counts[0]),
        "num_classes": classes,
        "im_size": list(images.shape[2:]),
        "mean": mean,
        "std": std,
        "temperature": bundle.origin.temperature,
        "teacher": None,
    }
    if bundle.teacher is not None:
        data["soft_labels"] = one_view_logits(bundle.teacher, images)
        settings["teacher"] = _write_teacher(bundle.teacher, folder)
    write_tensors(data, folder / DATA_FILE)
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    script = importlib.resources.files("cudd_core.exchange") / "score_ddranking.py"
    (folder / SCRIPT).write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    return written


def one_view_logits(teacher: NetworkRecord, images: Tensor) -> Tensor:
    """Return the teacher's logits, float32 [n, K], of uint8 images [n, C, H, W] as they are: not cropped, not mixed."""
    network = restore_network(teacher)
    normalise = Normalizer.of(teacher.spec)
    with torch.no_grad():
        return torch.cat([network(normalise(part)) for part in torch.split(images, _BATCH)])


def _write_teacher(teacher: NetworkRecord, folder: Path) -> dict[str, Any] | None:
    """Write the teacher's weights under DD-Ranking's names and return how to build it; None if it lacks the network."""
    spec = teacher.spec
    convnet, resnet = _CONVNET.fullmatch(spec.arch), _RESNET.fullmatch(spec.arch)
    if spec.channels != 3 or not (convnet or resnet):
        return None
    state = teacher.state
    if convnet:
        state = {name.replace("head.", "classifier."): tensor for name, tensor in state.items()}
    write_tensors(state, folder / TEACHER_FILE)
    name = f"ConvNet-{convnet[1]}-BN" if convnet else f"ResNet-{resnet[1]}-BN" if resnet else ""
    return {"model_name": name, "use_torchvision": resnet is not None, "mean": spec.mean, "std": spec.std}


def recognises(folder: Path) -> bool:
    """Whether the folder has the settings of such an export."""
    return (folder / SETTINGS_FILE).is_file()


def read(folder: Path) -> SyntheticSet:
    """Read the images of an export that has lost its manifest; classes are named by number."""
    return read_class_folders(folder / ROOT, rded.FOLDER)
