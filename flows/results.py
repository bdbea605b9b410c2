"""What the stages of a pipeline produce: references to stored outputs, in the order of Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from flows.run import PipelineRun, Round
from tasks.refs import ByNetwork, Ref

IMPORTED = "imported"
"""Key in a run's recipe.json and in its summary, which says that its set came from a folder."""


@dataclass(frozen=True)
class Curriculum:
    """What one round of Algorithm 1 produced, as references only."""

    index: int
    ipc: int
    selections: tuple[Ref, ...]
    shards: tuple[Ref, ...]
    student: Ref | None
    round: Round


def shards_of(rounds: Iterable[Curriculum]) -> tuple[Ref, ...]:
    """Return S_{1:j}: the shards of some rounds, in their order."""
    return tuple(shard for each in rounds for shard in each.shards)


@dataclass(frozen=True)
class Teacher:
    """θ*, its test accuracy and, if any, its verdicts on every class block; `others`: further ones, measured too."""

    network: Ref
    accuracy: Ref
    verdicts: tuple[Ref, ...]
    others: tuple[Ref, ...] = ()
    other_accuracies: tuple[Ref, ...] = ()

    @property
    def networks(self) -> tuple[Ref, ...]:
        """All teachers, θ* first."""
        return (self.network, *self.others)


@dataclass(frozen=True)
class Compared:
    """Sets under equal conditions, by method: their shards, labels, fresh networks and how well those do."""

    sets: Mapping[str, tuple[Ref, ...]]
    labels: Mapping[str, tuple[Ref, ...]]
    networks: ByNetwork
    evaluations: ByNetwork

    def joined_with(self, other: Compared, order: Iterable[str]) -> dict[str, Any]:
        """Return the fields of both together, with methods in the given order."""
        joined = {each.name: {**getattr(self, each.name), **getattr(other, each.name)} for each in fields(Compared)}
        return {name: {method: values[method] for method in order} for name, values in joined.items()}


@dataclass(frozen=True)
class Results(Compared):
    """All references that a run produces.

    `students`: curriculum → accuracy of its student. `agreement`: of a set from a folder, the share of images that the
    teacher assigns to the class that they are labelled as.
    """

    teacher: Teacher
    curricula: tuple[Curriculum, ...]
    dataset: Ref
    students: Mapping[int, Ref]
    agreement: Ref | None = None


Stages = Callable[[PipelineRun], Results]
"""Everything that a run goes through."""
