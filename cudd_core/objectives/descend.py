"""The loop that every objective shares: step, clamp, log, round."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cudd_core.data.augment import Normalizer
from cudd_core.objectives.interface import Batch, Descent, Objective
from cudd_core.progress import Progress, silent
from cudd_core.runtime import Runtime

Rows = list[dict[str, float]]
"""Logged losses: slice and class of a batch's first image, iteration, the terms by name."""


def descend(
    objective: Objective,
    originals: Tensor,
    labels: Tensor,
    slices: Tensor,
    normalizer: Normalizer,
    seed: int,
    runtime: Runtime,
    *,
    order: Tensor | None = None,
    progress: Progress = silent,
) -> tuple[Tensor, Rows]:
    """Minimise `objective` over images that begin at `originals`; return uint8 images [n, C, H, W] and logged losses.

    `originals` uint8 [n, C, H, W], `labels` and `slices` int64 [n], slice-major, the same classes in every slice.
    `order` int64 [n]: positions in the order in which batches are cut, a permutation within every slice.
    Images are float in the normalised space while they are optimised; the last iterate is rounded.
    """
    num_slices = len(torch.unique_consecutive(slices))
    batches = list(objective.batches(num_slices, len(slices) // num_slices))
    if order is not None:
        batches = [order[positions] for positions in batches]
    images, history = torch.empty_like(originals), []
    for done, positions in enumerate(batches):
        first = (int(slices[positions[0]]), int(labels[positions[0]]))

        def report(iteration: int, total: int, losses: Mapping[str, float], done: int = done) -> None:
            progress(done * total + iteration, len(batches) * total, losses)

        batch = Batch(
            runtime.images(normalizer(originals[positions])),
            labels[positions].to(runtime.device),
            (seed, "synthesize", *first),
        )
        images[positions], rows = _follow(objective, objective.descent(batch), normalizer, report)
        history += [{"slice": float(first[0]), "class": float(first[1]), **row} for row in rows]
    return images, history


def _follow(objective: Objective, descent: Descent, normalizer: Normalizer, report: Progress) -> tuple[Tensor, Rows]:
    """Make all steps of one batch; return uint8 images and the logged losses."""
    optimizer = descent.optimizer
    peaks = [group["lr"] for group in optimizer.param_groups]
    logged: list[tuple[int, dict[str, Tensor]]] = []
    for iteration, terms in enumerate(descent.steps):
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * descent.decay(iteration)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            normalizer.clamp_(descent.images)
        if iteration % objective.log_every == 0 or iteration + 1 == objective.iterations:
            logged.append((iteration, {name: term.detach() for name, term in terms.items()}))
            report(iteration + 1, objective.iterations, {})
    rows = [{"iteration": float(i), **{name: float(value) for name, value in t.items()}} for i, t in logged]
    return normalizer.to_uint8(descent.images.detach()), rows
