"""The loop that every objective shares: step, clamp, log, round."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cudd_core.compute.graphs import MOST_VALUES, Recorded
from cudd_core.compute.optimizers import learning_rates, set_learning_rates
from cudd_core.compute.runtime import Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.errors import ConfigError
from cudd_core.objectives.checkpoint import load_descent, save_descent
from cudd_core.objectives.interface import Batch, Descent, Objective
from cudd_core.pace import Pace
from cudd_core.progress import CONTINUED, Progress, silent

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
    checkpoints: Path | None = None,
    progress: Progress = silent,
) -> tuple[Tensor, Rows]:
    """Minimise `objective` over images that start from `originals`; return uint8 images [n, C, H, W] and logged losses.

    `originals` uint8 [n, C, H, W], `labels` and `slices` int64 [n], slice-major, the same classes in every slice.
    `order` int64 [n]: positions in the order in which batches are cut, a permutation within every slice.
    Images are float in the normalised space while they are optimised; the last iterate is rounded. With a folder of
    `checkpoints`, the state is saved there when losses are logged and saving is worth its time (`Pace`), and a killed
    descent resumes from it.

    Raises:
        ConfigError: a loss is no longer finite.
    """
    num_slices = len(torch.unique_consecutive(slices))
    batches = list(objective.batches(num_slices, len(slices) // num_slices))
    if order is not None:
        batches = [order[positions] for positions in batches]
    images, history, pace = torch.empty_like(originals), [], Pace()
    for done, positions in enumerate(batches):
        first = (int(slices[positions[0]]), int(labels[positions[0]]))

        def report(iteration: int, continued: bool, done: int = done) -> None:
            steps = done * objective.iterations + iteration
            progress(steps, len(batches) * objective.iterations, {CONTINUED: steps} if continued else {})

        batch = Batch(
            runtime.images(normalizer(originals[positions])),
            labels[positions].to(runtime.device),
            (seed, "synthesize", *first),
        )
        file = checkpoints / f"batch-{done:05d}.safetensors" if checkpoints else None
        images[positions], rows = _follow(objective, objective.descent(batch), normalizer, runtime, file, pace, report)
        history += [{"slice": float(first[0]), "class": float(first[1]), **row} for row in rows]
    return images, history


def _follow(
    objective: Objective,
    descent: Descent,
    normalizer: Normalizer,
    runtime: Runtime,
    checkpoint: Path | None,
    pace: Pace,
    report: Callable[[int, bool], None],
) -> tuple[Tensor, Rows]:
    """Run all steps of one batch; return uint8 images and the logged losses."""
    optimizer = descent.optimizer
    peaks = learning_rates(optimizer)
    names: list[str] = []
    logged: list[tuple[int, dict[str, Tensor]]] = []
    first = load_descent(descent, logged, checkpoint) if checkpoint else 0
    if 0 < first < objective.iterations:  # once: of batches that are finished, nothing continues
        report(first, True)

    def make_step(*inputs: Any) -> tuple[Tensor, ...]:
        terms = descent.terms(*inputs)
        names[:] = [*terms, *descent.learned]
        values = torch.stack(list(terms.values()))
        # Copied before the step: the values that these terms were computed with.
        learned = [value.detach().clone() for value in descent.learned.values()]
        optimizer.zero_grad(set_to_none=True)
        values.sum().backward()
        optimizer.step()
        with torch.no_grad():
            normalizer.clamp_(descent.images)
        return *values.detach().unbind(), *learned

    worth_it = descent.recordable and descent.images.numel() <= MOST_VALUES
    step = Recorded(make_step, runtime.device, runtime.config.graphs and worth_it)
    for iteration, inputs in enumerate(descent.inputs(first), start=first):
        set_learning_rates(optimizer, [peak * descent.decay(iteration) for peak in peaks])
        shown = step(*inputs)
        last = iteration + 1 == objective.iterations
        if last or iteration % objective.log_every == 0:
            logged.append((iteration, dict(zip(names, (value.clone() for value in shown), strict=True))))
            if checkpoint and (last or pace.due()):
                with pace.saving():
                    save_descent(descent, logged, checkpoint)
        report(iteration + 1, False)
    rows = [{"iteration": float(i), **{name: float(value) for name, value in t.items()}} for i, t in logged]
    for row in rows:
        for name, value in row.items():
            if not math.isfinite(value):
                raise ConfigError(
                    f"Synthesis diverged: at iteration {row['iteration']:.0f} {name} is {value}. Lower "
                    "synthesis.learning_rate, or the weight of that term."
                )
    return normalizer.to_uint8(descent.images.detach()), rows
