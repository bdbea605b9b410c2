"""Whether what a run stores fits on the disk."""

from __future__ import annotations

import shutil
from collections import Counter

from cudd_core.errors import ResourceError
from cudd_core.models.registry import build_network
from flows.recipes import Recipe
from tasks.stage import DataRef
from tasks.store import Store


def check_space(recipe: Recipe, data: DataRef, store: Store, force: frozenset[str] = frozenset()) -> None:
    """Check that the images, soft labels and experts of a run that are not there yet fit beside the store's cache.

    `force`: stages that are made again, whatever is stored of them.

    Raises:
        ResourceError: they do not.
        StoreError: the store cannot be read, which is done where space looks short.
    """
    folder = store.cache_folder
    needed = {
        "synthesize": image_bytes(recipe, data),
        "relabel": label_bytes(recipe, data),
        "train_expert": expert_bytes(recipe, data),
    }
    free = shutil.disk_usage(folder).free
    if free >= sum(needed.values()):
        return
    for stage, here in bytes_here(recipe, data, store).items():
        if stage not in force:
            needed[stage] = max(0, needed[stage] - here)
    if free < sum(needed.values()):
        labels, experts = needed["relabel"], needed["train_expert"]
        of_which = f"soft labels {labels / 1e9:.1f} GB" + (f", experts {experts / 1e9:.1f} GB" if experts else "")
        raise ResourceError(
            f"{folder} has {free / 1e9:.1f} GB free; this run has yet to store about {sum(needed.values()) / 1e9:.1f} "
            f"GB (of which {of_which}). Free some space, set CUDD_HOME to a larger disk, store labels in fewer bytes "
            "(relabel.storage, relabel.reuse), or drop baselines."
        )


def image_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of all sets' images as raw pixels."""
    images = (1 + len(recipe.baselines)) * recipe.schedule.ipc * data.num_classes
    return images * recipe.data.channels * recipe.data.image_size**2


def label_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of all sets' soft labels for the evaluation; 0 where that asks for the classes alone."""
    if recipe.evaluation.labels == "hard":
        return 0
    training, images = recipe.evaluation.training, recipe.schedule.ipc * data.num_classes
    each = recipe.relabel.stored_bytes(data.num_classes, images, training.epochs, training.batch_size)
    return (1 + len(recipe.baselines)) * each


def expert_bytes(recipe: Recipe, data: DataRef) -> int:
    """Return the bytes of the networks whose ways through T are matched; 0 where the objective is another."""
    synthesis = recipe.synthesis
    if not synthesis.enabled or synthesis.objective != "mtt":
        return 0
    spec = (synthesis.mtt.arch, data.num_classes, recipe.data.channels, recipe.data.image_size)
    network = build_network(*spec, seed=0)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    return synthesis.mtt.experts * (synthesis.mtt.expert_epochs + 1) * weights


def bytes_here(recipe: Recipe, data: DataRef, store: Store) -> Counter[str]:
    """Return the bytes that lie on this machine already, by stage: images, labels for the evaluation, experts."""
    from flows.walk import walk  # It goes through the pipeline, whose beginning calls this module.

    found = Counter[str]()
    for part in walk(recipe, data, store):
        # A student's labels belong to a curriculum.
        counts = part.stage in ("synthesize", "train_expert") or (part.stage == "relabel" and not part.group)
        if counts and part.standing == "stored" and store.lies_here(part.ref):
            found[part.stage] += part.ref.bytes
    return found
