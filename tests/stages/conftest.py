"""A small separable data set and the teacher that it gives, made once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data.memory import ArraySplit
from cudd_core.records import NetworkRecord, Selection, SyntheticSet, Verdicts
from cudd_core.seeding import torch_rng
from cudd_core.stages.classify import classify
from cudd_core.stages.select import SelectConfig, select
from cudd_core.stages.squeeze import train_teacher
from cudd_core.teacher import TeacherConfig
from cudd_core.training import TrainingConfig

CLASSES = ("amber", "blue", "cyan", "dove")
SIZE = 8


def draw(per_class: int, seed: int, noise: float = 25.0) -> ArraySplit:
    """Classes mixed up, each a colour and a bright quarter of the image, with noise."""
    colours = torch.tensor([[150, 110, 60], [70, 80, 160], [60, 150, 150], [120, 120, 130]], dtype=torch.float32)
    labels = torch.arange(len(CLASSES)).repeat(per_class)
    generator = torch_rng(seed, "toy")
    pixels = colours[labels][:, :, None, None] + noise * torch.randn(len(labels), 3, SIZE, SIZE, generator=generator)
    for label in range(len(CLASSES)):
        row, column = divmod(label, 2)
        pixels[labels == label, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 40
    return ArraySplit(pixels.round().clamp(0, 255).to(torch.uint8), labels, CLASSES)


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime(ComputeConfig())


@pytest.fixture(scope="session")
def split() -> ArraySplit:
    """160 training images, 40 of each class."""
    return draw(40, seed=0)


@pytest.fixture(scope="session")
def test_split() -> ArraySplit:
    """80 test images."""
    return draw(20, seed=1)


@pytest.fixture(scope="session")
def teacher_config() -> TeacherConfig:
    training = TrainingConfig(optimizer="sgd", learning_rate=0.05, weight_decay=5e-4, epochs=6, batch_size=20)
    return TeacherConfig(arch="convnet2-w8", training=training, flip=False)


@pytest.fixture(scope="session")
def teacher(split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime) -> NetworkRecord:
    return train_teacher(split, teacher_config, 0, runtime)


@pytest.fixture(scope="session")
def student(split: ArraySplit, teacher_config: TeacherConfig, runtime: Runtime) -> NetworkRecord:
    """A network that has seen little: wrong on some images."""
    little = teacher_config.training.model_copy(update={"epochs": 1, "learning_rate": 0.002})
    return train_teacher(split, teacher_config.model_copy(update={"training": little}), 1, runtime)


@pytest.fixture(scope="session")
def verdicts(teacher: NetworkRecord, split: ArraySplit, runtime: Runtime) -> Verdicts:
    return classify(teacher, split, range(len(CLASSES)), runtime)


@pytest.fixture(scope="session")
def selection(split: ArraySplit, verdicts: Verdicts) -> Selection:
    """Slices 0, 1 and 2 of all classes."""
    used: Tensor = torch.empty(0, dtype=torch.int64)
    return select(split.labels, range(len(CLASSES)), range(3), verdicts, None, used, SelectConfig(), 0)


@pytest.fixture(scope="session")
def synthetic(split: ArraySplit, selection: Selection) -> SyntheticSet:
    """The originals of `selection`, as a set of 12 images."""
    sources = selection.indices.flatten()
    return SyntheticSet(
        images=split.images(sources),
        labels=selection.classes.repeat(3),
        slices=torch.arange(3).repeat_interleave(len(CLASSES)),
        sources=sources,
        curricula=torch.ones(len(sources), dtype=torch.int64),
        class_names=CLASSES,
    )
