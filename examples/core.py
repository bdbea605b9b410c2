"""Distil the digits with `cudd_core` alone: no Prefect, no MLflow, nothing stored.

    python examples/core.py --ipc 4 --iterations 200

Every stage is a function from records to a record, so a new selection or objective can be tried by replacing one line,
without the keys of a store, which do not see that code has changed.
"""

from __future__ import annotations

import argparse

import torch

from cudd_core.compute.runtime import ComputeConfig, Runtime
from cudd_core.data import open_split
from cudd_core.data.replay import ReplayConfig
from cudd_core.data.source import DataConfig
from cudd_core.labelling import Teaching
from cudd_core.measurement import measure
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.records import SyntheticSet
from cudd_core.stages.classify import classify
from cudd_core.stages.select import SelectConfig, select
from cudd_core.stages.squeeze import train_teacher
from cudd_core.stages.synthesize import synthesize
from cudd_core.stages.train_network import EvaluationConfig, train_network
from cudd_core.stages.train_student import StudentConfig, train_student
from cudd_core.teacher import TeacherConfig
from cudd_core.training import TrainingConfig

SEED = 0


def distil(ipc: int, iterations: int, epochs: int, arch: str = "convnet3-w16") -> tuple[SyntheticSet, dict[str, float]]:
    """Return a set of two curricula, and the accuracies of its teacher and of networks on the set and its originals."""
    runtime = Runtime(ComputeConfig())
    data = DataConfig(source="digits", channels=1, image_size=16)
    train, test = open_split(data, "train"), open_split(data, "test")
    everything = range(len(train.class_names))

    training = TrainingConfig(optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, epochs=10, batch_size=64)
    teacher = train_teacher(train, TeacherConfig(arch=arch, flip=False, training=training), SEED, runtime)
    # The teacher as the source of labels answers every batch anew. Labels from the stage `relabel` are for one set,
    # batch size, augmentation and seed, which nothing checks here.
    labels = Teaching(teacher)
    augmentation = ReplayConfig(flip=False, crop_scale=(0.35, 1.0))
    synthesis = SynthesisConfig(iterations=iterations, jitter=1, flip=False, crop_scale=(0.35, 1.0))
    taught = TrainingConfig(epochs=epochs, batch_size=16)

    right, wrong, student = classify(teacher, train, everything, runtime), None, None
    used = torch.empty(0, dtype=torch.int64)
    shards = []
    for j, new in enumerate((range(ipc // 2), range(ipc // 2, ipc)), start=1):
        if student is not None:
            wrong = classify(student, train, everything, runtime)
        chosen = select(train.labels, everything, new, right, wrong, used, SelectConfig(), SEED)
        used = torch.cat([used, chosen.indices.flatten()])
        shards.append(synthesize(teacher, student, chosen, new, train, j, synthesis, SEED, runtime))
        so_far = SyntheticSet.assemble(shards, train.class_names)
        student = train_student(
            so_far, labels, teacher.spec, student, j, StudentConfig(training=taught), augmentation, SEED, runtime
        )

    def judged(images: torch.Tensor) -> float:
        """Return the accuracy of a fresh network that is trained on the set with these images."""
        there = SyntheticSet(images, so_far.labels, so_far.slices, so_far.sources, so_far.curricula, so_far.class_names)
        evaluation = EvaluationConfig(training=taught)
        network = train_network(there, labels, teacher.spec, arch, 0, evaluation, augmentation, SEED, runtime)
        return measure(network, test, runtime).accuracy

    return so_far, {
        "teacher": measure(teacher, test, runtime).accuracy,
        "distilled": judged(so_far.images),
        "selection": judged(train.images(so_far.sources)),
    }


def main() -> None:
    """Print the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ipc", type=int, default=4, help="images per class, at least 2")
    parser.add_argument("--iterations", type=int, default=200, help="steps of synthesis for each batch")
    parser.add_argument("--epochs", type=int, default=100, help="epochs of students and of the evaluation")
    given = parser.parse_args()
    _, accuracies = distil(given.ipc, given.iterations, given.epochs)
    for name, value in accuracies.items():
        print(f"{name:10} {value:.1%}")


if __name__ == "__main__":
    main()
