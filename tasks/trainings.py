"""The trainings that several processes may share, as values that JSON can hold. They run here or in those processes.

Nothing of Prefect or MLflow is imported: a training process needs only the core.
"""

from __future__ import annotations

from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from cudd_core.compute.runtime import Runtime
from cudd_core.configuration import Configuration
from cudd_core.data import decode_ahead, open_split
from cudd_core.data.source import DataConfig
from cudd_core.distillation import LabelSource
from cudd_core.labelling import Teaching
from cudd_core.progress import Progress
from cudd_core.records import LabelShard, NetworkRecord, SyntheticSet
from cudd_core.stages.relabel import RelabelConfig
from cudd_core.stages.squeeze import train_teacher
from cudd_core.stages.train_network import EvaluationConfig, train_network
from cudd_core.stages.train_student import StudentConfig, train_student
from cudd_core.teacher import TeacherConfig

SET = "set"
"""Name under which S_{1:j} is read; it is assembled from the input `shards`."""


class Read(Protocol):
    """Reads a training's records, from the store or from folders of it."""

    def __call__(self, name: str, kind: type[Any] | UnionType) -> list[Any]:
        """Return the records of the input `name`, which must be of `kind`."""
        ...


class TeacherTraining(Configuration):
    """Train the teacher on T, whose images are decoded once, into the folder `decoded`."""

    kind: Literal["teacher"] = "teacher"
    data: DataConfig
    decoded: Path
    config: TeacherConfig
    seed: int

    def prepare(self, progress: Progress) -> None:
        """Do what one process does for all: decode the images."""
        decode_ahead(open_split(self.data, self.data.train_split, self.decoded), progress)

    def perform(self, read: Read, runtime: Runtime, checkpoints: Path, progress: Progress) -> NetworkRecord:
        """Return the teacher."""
        split = open_split(self.data, self.data.train_split, self.decoded)
        return train_teacher(split, self.config, self.seed, runtime, checkpoints=checkpoints, progress=progress)


class SetTraining(Configuration):
    """What trainings on a synthetic set share. Inputs: shards (read as `SET`), labels, teacher and `others`."""

    class_names: tuple[str, ...]
    replay: RelabelConfig
    seed: int

    def prepare(self, progress: Progress) -> None:
        """Do what one process does for all: nothing."""

    def synthetic(self, read: Read) -> SyntheticSet:
        """Return S_{1:j}."""
        (synthetic,) = read(SET, SyntheticSet)
        assert isinstance(synthetic, SyntheticSet)
        return synthetic

    def labels(self, read: Read) -> LabelSource:
        """Return the label shards, mapped from their files on this machine, or the teachers that compute the labels."""
        if self.replay.storage == "none":
            return Teaching(self.teacher(read), self.replay.batch_statistics, read("others", NetworkRecord))
        labels: list[LabelShard] = read("labels", LabelShard)
        return labels

    def teacher(self, read: Read) -> NetworkRecord:
        """Return the teacher."""
        (teacher,) = read("teacher", NetworkRecord)
        assert isinstance(teacher, NetworkRecord)
        return teacher


class StudentTraining(SetTraining):
    """Train φ_j on S_{1:j}, starting from the input `previous` (φ_{j-1}) if there is one."""

    kind: Literal["student"] = "student"
    curriculum: int
    config: StudentConfig

    def perform(self, read: Read, runtime: Runtime, checkpoints: Path, progress: Progress) -> NetworkRecord:
        """Return φ_j."""
        return train_student(
            self.synthetic(read),
            self.labels(read),
            self.teacher(read).spec,
            next(iter(read("previous", NetworkRecord)), None),
            self.curriculum,
            self.config,
            self.replay,
            self.seed,
            runtime,
            checkpoints=checkpoints,
            progress=progress,
        )


class NetworkTraining(SetTraining):
    """Train the `number`-th fresh `arch` on a set."""

    kind: Literal["network"] = "network"
    arch: str
    number: int
    config: EvaluationConfig

    def perform(self, read: Read, runtime: Runtime, checkpoints: Path, progress: Progress) -> NetworkRecord:
        """Return the network."""
        return train_network(
            self.synthetic(read),
            self.labels(read),
            self.teacher(read).spec,
            self.arch,
            self.number,
            self.config,
            self.replay,
            self.seed,
            runtime,
            checkpoints=checkpoints,
            progress=progress,
        )


Training = Annotated[TeacherTraining | StudentTraining | NetworkTraining, Field(discriminator="kind")]
"""Any of them; in JSON, `kind` says which."""
