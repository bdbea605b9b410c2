"""Coverage: how the synthetic images of a class spread among its originals in the teacher's features (Fig. 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cudd_core.compute.runtime import Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.errors import DataError
from cudd_core.models.registry import restore_network
from cudd_core.neighbours import density_and_coverage, homogeneity, neighbour_radii
from cudd_core.prediction import head_inputs
from cudd_core.progress import Progress, silent
from cudd_core.records import Coverage, NetworkRecord, SyntheticSet
from cudd_core.seeding import derive

VERSION = 1

ORIGINALS = "originals"


def coverage(
    teacher: NetworkRecord,
    train: ImageSplit,
    sets: Mapping[str, SyntheticSet],
    label: int,
    neighbours: int,
    seed: int,
    runtime: Runtime,
    *,
    progress: Progress = silent,
) -> Coverage:
    """Compare the images of class `label` in each of `sets` with all its originals, by the input of the teacher's head.

    Images are seen in centre view by the teacher in eval mode. Density and coverage, with k = `neighbours`, are
    computed on the features themselves. The t-SNE embedding, one for all sets together, is for display only.

    Raises:
        DataError: the class has no more than `neighbours` originals.
    """
    positions = (train.labels == label).nonzero().flatten()
    if len(positions) <= neighbours:
        raise DataError(
            f"Class {train.class_names[label]!r} has {len(positions)} training images; --neighbours {neighbours} needs "
            f"at least {neighbours + 1}."
        )
    steps = len(sets) + 2
    real = _features(teacher, lambda rows: train.images(positions[rows]), len(positions), runtime)
    progress(1, steps, {})
    features, scores = {ORIGINALS: real}, [(float("nan"), float("nan"), homogeneity(real))]
    radii = neighbour_radii(real, neighbours)
    for done, (name, each) in enumerate(sets.items(), start=2):
        own = each.images[each.labels == label]
        features[name] = fake = _features(teacher, own.__getitem__, len(own), runtime)
        scores.append((*density_and_coverage(real, fake, radii, neighbours), homogeneity(fake)))
        progress(done, steps, {})
    points = embed(torch.cat(list(features.values())), derive(seed, "coverage", label))
    progress(steps, steps, {})
    parts = torch.split(points, [len(each) for each in features.values()])
    return Coverage(dict(zip(features, parts, strict=True)), torch.tensor(scores, dtype=torch.float64))


def embed(features: Tensor, seed: int) -> Tensor:
    """Return the t-SNE of `features` [n, d], float32 [n, 2]: perplexity min(30, (n − 1) / 3), initialised by PCA."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed % 2**32, n_jobs=1)
    return torch.from_numpy(tsne.fit_transform(features.numpy())).float()


def _features(teacher: NetworkRecord, read: Callable[[Tensor], Tensor], count: int, runtime: Runtime) -> Tensor:
    """Return the inputs of the teacher's head, float32 [count, d]."""
    normalizer = Normalizer.of(teacher.spec, runtime.device)
    return head_inputs(
        restore_network(teacher), teacher.spec.arch, lambda rows: normalizer(read(rows)), torch.arange(count), runtime
    )
