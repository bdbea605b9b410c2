"""torchvision's classification data sets by class name: CIFAR10, CIFAR100, MNIST, FashionMNIST, SVHN etc."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cudd_core.data.encoded import MEMORY_LIMIT
from cudd_core.data.labels import check_labels
from cudd_core.data.memory import ArraySplit
from cudd_core.data.pixels import to_pixels
from cudd_core.data.source import DataConfig
from cudd_core.errors import DataError


def open_torchvision(config: DataConfig, split: str) -> ArraySplit:
    """Read a split of `torchvision.datasets.<config.name>` from `config.root`, downloading it if it is not there.

    Data sets with a `train=True/False` argument have the splits `train` and `test`; others (SVHN) get the split's name.

    Raises:
        DataError: no root, unknown data set or split, a set without one class label per image, a failed download, a
            set too large for memory, or channels that disagree with data.channels.
    """
    where = f"torchvision's {config.name}, split {split!r}"
    dataset = _open(config, split)
    if len(dataset) * config.channels * config.image_size**2 >= MEMORY_LIMIT:
        raise DataError(
            f"{where} has {len(dataset)} images, too many to keep in memory at {config.image_size} px. "
            "Save it as a folder (data.source=image_folder) or as Parquet (hf_parquet), or choose a smaller "
            "data.image_size."
        )
    pixels = torch.empty(len(dataset), config.channels, config.image_size, config.image_size, dtype=torch.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for index in range(len(dataset)):
        image, label = dataset[index]
        if not isinstance(image, Image.Image) or not isinstance(label, int):
            raise DataError(f"{where} does not give an image and one class number each. Choose a classification set.")
        pixels[index] = to_pixels(image, f"{where}, image {index}", config.decoding)
        labels[index] = label
    class_names = _class_names(dataset, labels)
    check_labels(labels, class_names, where, every_class=split == config.train_split)
    return ArraySplit(pixels, labels, class_names)


def _open(config: DataConfig, split: str) -> Any:
    if not config.root:
        raise DataError(
            "data.root is empty. Set it to the folder for torchvision's files; they are downloaded into it."
        )
    kind = _dataset_class(config.name)
    parameters = inspect.signature(kind).parameters
    if "train" in parameters:
        if split not in ("train", "test"):
            raise DataError(f"torchvision's {config.name} has no split {split!r}. Splits: train, test.")
        options: dict[str, Any] = {"train": split == "train"}
    else:
        options = {"split": split}
    root = Path(config.root).expanduser()
    try:
        return kind(root=root, **options)
    except ValueError as error:
        raise DataError(f"torchvision's {config.name} has no split {split!r}: {error}") from error
    except (RuntimeError, OSError) as error:  # its files are missing or damaged
        advice = f"Put its files into {root}, or check the network (or HTTPS_PROXY) and that the folder can be written."
        if "download" not in parameters:
            raise DataError(
                f"torchvision's {config.name} is not in {root} and cannot be downloaded ({error}). {advice}"
            ) from error
    try:
        return kind(root=root, download=True, **options)
    except Exception as error:  # downloads fail in many ways: URLError, broken archives, checksums, full disks
        raise DataError(
            f"torchvision's {config.name} is not in {root}, and downloading it failed ({error}). {advice}"
        ) from error


def _dataset_class(name: str) -> Any:
    """Return the data set class `name`, if it needs only a root and a split."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, name, None) if name in torchvision.datasets.__all__ else None
    if not (inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)):
        raise DataError(
            f"torchvision has no data set {name!r}. Set data.name to a class of torchvision.datasets: CIFAR10, "
            "CIFAR100, MNIST, FashionMNIST, SVHN, …"
        )
    parameters = inspect.signature(kind).parameters
    required = {
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    chooser = parameters.keys() & {"split", "train"}
    if required - {"root"} - chooser or not chooser or chooser == {"split", "train"}:
        raise DataError(
            f"torchvision's {name} needs more than a root and a split. Save it as a folder (data.source=image_folder) "
            "or as Parquet (hf_parquet)."
        )
    return kind


def _class_names(dataset: Any, labels: torch.Tensor) -> tuple[str, ...]:
    """Return the set's own class names, else the labels."""
    names = getattr(dataset, "classes", None)
    if isinstance(names, (list, tuple)) and names:
        return tuple(name if isinstance(name, str) else ", ".join(name) for name in names)
    return tuple(str(label) for label in range(int(labels.max()) + 1 if len(labels) else 0))
