"""Load a teacher instead of training one: from torchvision, timm, a safetensors file or a stored network."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cudd_core.class_order import in_order
from cudd_core.codec import read_record
from cudd_core.data.source import ImageSplit
from cudd_core.errors import ConfigError, ModelError, StoreError
from cudd_core.manifest import MANIFEST_FILE
from cudd_core.models.adapters import load_timm_weights, load_torchvision_weights
from cudd_core.models.architectures import library_name
from cudd_core.models.registry import build, load_state
from cudd_core.records import NetworkRecord, NetworkSpec
from cudd_core.teacher import TeacherConfig

VERSION = 2


def teacher_file_digest(path: Path) -> str:
    """Return the sha256 hex of a file or, for a folder with a stored network, of its manifest, which lists all digests.

    Raises:
        ModelError: the file does not exist, the folder holds no stored network, or the format is not safetensors
            (pickles can run code when they are read).
    """
    with _weights_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _weights_file(path: Path) -> Path:
    """Return the file itself or, for a folder, its manifest. Raises as `teacher_file_digest`."""
    if path.is_dir():
        if not (path / MANIFEST_FILE).is_file():
            raise ModelError(
                f"teacher.weights: the folder {path} holds no stored network. Give a .safetensors file, or the folder "
                "squeeze/ARCH that `cudd fetch RUN squeeze` made."
            )
        return path / MANIFEST_FILE
    if not path.is_file():
        raise ModelError(f"teacher.weights: there is no file {path}.")
    if path.suffix != ".safetensors":
        raise ModelError(
            f"teacher.weights: {path} is not a .safetensors file. Pickled checkpoints can run code and are never read; "
            "convert it with examples/convert_teacher.py or safetensors.torch.save_file(model.state_dict(), ...)."
        )
    return path


def load_teacher(config: TeacherConfig, split: ImageSplit) -> NetworkRecord:
    """Return the teacher that `config` names, checked against its architecture.

    If its class names include all of the data's, its outputs are put into the data's order (`class_order.in_order`).
    Values in the configuration override those that come with the weights. A safetensors file may carry `class_names`,
    `mean` and `std` in its metadata, each as a JSON list. A folder with a stored network provides all of them.

    Raises:
        ConfigError: neither the configuration nor the weights give class names, mean or std; mean and std do not match
            the data's channels; or the architecture belongs to another library than the source.
        ModelError: the weights cannot be read or do not fit.
    """
    if config.source == "file" and Path(config.weights).expanduser().is_dir():
        return stored_teacher(_stored(Path(config.weights).expanduser()), config, split, config.weights)
    state, class_names, mean, std = _read(config)
    class_names, mean, std = config.class_names or class_names, config.mean or mean, config.std or std
    if config.class_order == "as_data":
        # ImageNet's folders are WordNet ids, torchvision's names are words, in the same order; preflight checks it.
        class_names = split.class_names
    for field, value in (("class_names", class_names), ("mean", mean), ("std", std)):
        if not value:
            raise ConfigError(f"teacher.{field} is needed: {config.weights or config.arch} does not tell it.")
    if len(mean) != split.channels or len(std) != split.channels:
        raise ConfigError(
            f"teacher.mean and teacher.std have {len(mean)} and {len(std)} values but the data has {split.channels} "
            "channel(s). Set data.channels to what the teacher was trained on."
        )
    spec = NetworkSpec(config.arch, len(class_names), split.channels, split.image_size, mean, std, class_names)
    network = build(spec, seed=0)
    load_state(network, state, spec)
    return in_order(NetworkRecord.of(network, spec, ()), split.class_names)


def stored_teacher(record: NetworkRecord, config: TeacherConfig, split: ImageSplit, holder: str) -> NetworkRecord:
    """Return the network of `record` as the teacher; values in the configuration override its own.

    Its outputs are put into the data's order of classes, as in `load_teacher`. `holder` says where the network is
    stored, for error messages.

    Raises:
        ModelError: the architecture or the number of class names differs.
    """
    spec = record.spec
    if spec.arch != config.arch:
        raise ModelError(
            f"teacher.arch = {config.arch}, but {holder} holds a {spec.arch}. Set teacher.arch={spec.arch}."
        )
    names = split.class_names if config.class_order == "as_data" else config.class_names or spec.class_names
    if len(names) != spec.num_classes:
        whose, advice = "teacher.class_names has", "Name each of them."
        if config.class_order == "as_data":
            whose, advice = "the data has", "Choose the teacher that was trained on these classes."
        raise ModelError(f"{holder} knows {spec.num_classes} classes, but {whose} {len(names)}. {advice}")
    own = replace(spec, class_names=names, mean=config.mean or spec.mean, std=config.std or spec.std)
    return in_order(replace(record, spec=own), split.class_names)


def _stored(folder: Path) -> NetworkRecord:
    _weights_file(folder)
    try:
        record = read_record(folder)
    except StoreError as error:
        raise ModelError(f"teacher.weights: {error} Fetch or copy it again.") from error
    if not isinstance(record, NetworkRecord):
        raise ModelError(f"teacher.weights: {folder} holds a {type(record).__name__}, not a network.")
    return record


_Loaded = tuple[dict[str, Tensor], tuple[str, ...], tuple[float, ...], tuple[float, ...]]


def _read(config: TeacherConfig) -> _Loaded:
    if config.source in ("torchvision", "timm"):
        library, _, name = library_name(config.arch).rpartition("/")
        if library not in ("", config.source) and library in ("torchvision", "timm"):
            raise ConfigError(f"teacher.arch = {config.arch} is {library}'s. Set teacher.source={library}.")
        return load_timm_weights(name) if config.source == "timm" else load_torchvision_weights(name, config.weights)
    path = _weights_file(Path(config.weights).expanduser())
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            state: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        class_names, mean, std = (json.loads(metadata.get(key, "[]")) for key in ("class_names", "mean", "std"))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise ModelError(f"teacher.weights: {path} cannot be read as safetensors: {error}") from error
    try:
        # Metadata in a file must satisfy the configuration's own rules.
        told = TeacherConfig.model_validate({"class_names": class_names, "mean": mean, "std": std})
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(
            f"teacher.weights: {path} has bad metadata, {first['loc'][0]} = {first['input']!r}: {first['msg']}."
        ) from error
    return state, told.class_names, told.mean, told.std
