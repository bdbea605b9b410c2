"""Whether what a run stores fits on the disk."""

from __future__ import annotations

import shutil
import statistics
from collections import Counter
from collections.abc import Sequence

from cudd_core.errors import ResourceError
from cudd_core.models.registry import build_network
from flows.plan import label_bytes
from flows.quantities import in_bytes
from flows.recipe import Recipe
from flows.results import Stages
from flows.walk import begin_walk
from tasks.context import DataRef
from tasks.refs import Ref
from tasks.store import Store


def check_space(
    recipe: Recipe,
    data: DataRef,
    store: Store,
    stages: Stages,
    force: frozenset[str] = frozenset(),
    labelled: int = 1,
) -> int:
    """Check that the images, soft labels and experts that a run has yet to store fit on the disk of its outputs.

    `stages`: what the run goes through. `force`: stages that are made again, whatever is stored of them. `labelled`:
    how many times, at most, the run's sets are labelled, each time in another way.

    Return how many bytes these are: at most, if there is plenty of space.

    Raises:
        ResourceError: they do not fit.
        StoreError: the store cannot be read; it is read only if space looks short.
    """
    folder = store.output_folder
    free = shutil.disk_usage(folder).free
    labels_at_most = labelled * label_bytes(recipe, data.num_classes).in_all
    at_most = image_bytes(recipe, data) + labels_at_most + expert_bytes(recipe, data)
    if free >= at_most:
        return at_most
    images, labels, experts = bytes_lacking(recipe, data, store, stages, force)
    needed = images + labels + experts
    if free < needed:
        of_which = f"soft labels {in_bytes(labels)}" + (f", experts {in_bytes(experts)}" if experts else "")
        raise ResourceError(
            f"{folder} has {in_bytes(free)} free; this run has yet to store about {in_bytes(needed)} (of which "
            f"{of_which}). Free some space, set CUDD_HOME or CUDD_ARTIFACT_ROOT to a larger disk, store labels in "
            "fewer bytes (relabel.storage, relabel.reuse), or drop baselines."
        )
    return needed


def image_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of all sets' images as raw pixels."""
    images = (1 + len(recipe.baselines)) * recipe.schedule.ipc * data.num_classes
    return images * recipe.data.channels * recipe.data.image_size**2


def expert_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of the experts, whose trajectories on T are matched; 0 if the objective is another."""
    synthesis = recipe.synthesis
    if not synthesis.matches_trajectories:
        return 0
    spec = (synthesis.mtt.arch, data.num_classes, recipe.data.channels, recipe.data.image_size)
    network = build_network(*spec, seed=0)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    return synthesis.mtt.experts * (synthesis.mtt.expert_epochs + 1) * weights


def bytes_lacking(
    recipe: Recipe, data: DataRef, store: Store, stages: Stages, force: frozenset[str] = frozenset()
) -> tuple[int, int, int]:
    """Return the bytes of images, soft labels and experts that a run has yet to store on this machine.

    Of what a stage divides into parts, every part counts as equally large. Parts that a run meets twice count once.
    """
    ledger = store.ledger()
    walked = begin_walk(recipe, data, store, ledger)
    results = stages(walked)

    def lies_here(ref: Ref) -> bool:
        return ref.stage not in force and ledger.standing(ref.key) == "stored" and store.lies_here(ref)

    def lacking(refs: Sequence[Ref]) -> float:
        return 1 - sum(lies_here(ref) for ref in refs) / len(refs) if refs else 0.0

    # Labels of a student are made in its curriculum's round, those for the evaluation of a set outside of any.
    relabel, classes = recipe.relabel, data.num_classes
    taught = {
        each.round.name: (each.ipc * classes, recipe.student.training_of(each.index)) for each in results.curricula
    }
    evaluated = (recipe.schedule.ipc * classes, recipe.evaluation.training)
    missing = {part.ref.key: part.group for part in walked.parts if part.stage == "relabel" and not lies_here(part.ref)}
    labels = 0.0
    for group, count in Counter(missing.values()).items():
        images, training = taught.get(group, evaluated)
        shards = len(relabel.shards(training.epochs))
        labels += count * relabel.stored_bytes(classes, images, training.epochs, training.batch_size) / shards
    of_sets = statistics.fmean(lacking(shards) for shards in results.sets.values())
    of_experts = lacking([part.ref for part in walked.parts if part.stage == "train_expert"])
    return round(of_sets * image_bytes(recipe, data)), round(labels), round(of_experts * expert_bytes(recipe, data))
