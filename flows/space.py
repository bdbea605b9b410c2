"""Whether what a run stores fits on the disk."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from cudd_core.errors import ResourceError
from cudd_core.models.registry import build_network
from flows.quantities import in_bytes
from flows.recipe import Recipe
from flows.results import Stages
from flows.walk import begin_walk
from tasks.context import DataRef
from tasks.refs import Ref
from tasks.store import Store


def check_space(
    recipe: Recipe, data: DataRef, store: Store, stages: Stages, force: frozenset[str] = frozenset()
) -> None:
    """Check that the images, soft labels and experts that a run has yet to store fit on the disk of its outputs.

    `stages`: what the run goes through. `force`: stages that are made again, whatever is stored of them.

    Raises:
        ResourceError: they do not fit.
        StoreError: the store cannot be read; it is read only if space looks short.
    """
    folder = store.output_folder
    images, labels, experts = image_bytes(recipe, data), label_bytes(recipe, data), expert_bytes(recipe, data)
    free = shutil.disk_usage(folder).free
    if free >= images + labels + experts:
        return
    lacking = shares_lacking(recipe, data, store, stages, force)
    needed = lacking.images * images + lacking.labels * labels + lacking.experts * experts
    if free < needed:
        labels, experts = round(lacking.labels * labels), round(lacking.experts * experts)
        of_which = f"soft labels {in_bytes(labels)}" + (f", experts {in_bytes(experts)}" if experts else "")
        raise ResourceError(
            f"{folder} has {in_bytes(free)} free; this run has yet to store about {in_bytes(needed)} (of which "
            f"{of_which}). Free some space, set CUDD_HOME or CUDD_ARTIFACT_ROOT to a larger disk, store labels in "
            "fewer bytes (relabel.storage, relabel.reuse), or drop baselines."
        )


@dataclass(frozen=True)
class Shares:
    """Which share of a run's images, labels and experts is not on this machine, in [0, 1]."""

    images: float
    labels: float
    experts: float


def image_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of all sets' images as raw pixels."""
    images = (1 + len(recipe.baselines)) * recipe.schedule.ipc * data.num_classes
    return images * recipe.data.channels * recipe.data.image_size**2


def label_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of all sets' soft labels for the evaluation; 0 if it uses hard labels."""
    if recipe.evaluation.labels == "hard":
        return 0
    training, images = recipe.evaluation.training, recipe.schedule.ipc * data.num_classes
    each = recipe.relabel.stored_bytes(data.num_classes, images, training.epochs, training.batch_size)
    return (1 + len(recipe.baselines)) * each


def expert_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of the experts, whose trajectories on T are matched; 0 if the objective is another."""
    synthesis = recipe.synthesis
    if not synthesis.matches_trajectories:
        return 0
    spec = (synthesis.mtt.arch, data.num_classes, recipe.data.channels, recipe.data.image_size)
    network = build_network(*spec, seed=0)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    return synthesis.mtt.experts * (synthesis.mtt.expert_epochs + 1) * weights


def shares_lacking(recipe: Recipe, data: DataRef, store: Store, stages: Stages, force: frozenset[str]) -> Shares:
    """Return what a run has yet to store on this machine, as shares of the number of parts."""
    ledger = store.ledger()
    walked = begin_walk(recipe, data, store, ledger)
    results = stages(walked)

    def lies_here(ref: Ref) -> bool:
        return ref.stage not in force and ledger.standing(ref.key) == "stored" and store.lies_here(ref)

    def lacking(refs: Sequence[Ref]) -> float:
        return 1 - sum(lies_here(ref) for ref in refs) / len(refs) if refs else 0.0

    return Shares(
        statistics.fmean(lacking(shards) for shards in results.sets.values()),
        statistics.fmean(lacking(labels) for labels in results.labels.values()),
        lacking([part.ref for part in walked.parts if part.stage == "train_expert"]),
    )
