"""IPC → curriculum boundaries (Sec. III-A, Fig. 7); classes → blocks, learning steps; slices → shards."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cudd_core.configuration import Configuration
from cudd_core.errors import ConfigError
from cudd_core.seeding import host_rng


class ScheduleConfig(Configuration):
    """How many images per class, in which curricula, and into which units the work is divided."""

    ipc: int = Field(10, ge=1, le=5000, description="Images per class in the finished set.")
    kind: Literal["logarithmic", "uniform", "explicit"] = Field(
        "logarithmic",
        description="How the set grows: doubling (the paper), by `step` images, or to given `boundaries`.",
    )
    step: int = Field(5, ge=1, description="logarithmic: first boundary; uniform: distance between boundaries.")
    boundaries: tuple[int, ...] = Field(
        (), description="Cumulative images per class after each curriculum; `explicit` only."
    )
    block_size: int = Field(100, ge=1, description="Classes per block; separate tasks process the blocks.")
    slices_per_shard: int = Field(5, ge=1, description="Images per class that one synthesis task makes.")


def curriculum_boundaries(config: ScheduleConfig) -> tuple[int, ...]:
    """Return the cumulative images per class after each curriculum, ending with `config.ipc`.

    `logarithmic`: J = max(0, ⌊log2(IPC / step)⌋) + 1 boundaries step, 2·step, 4·step, …, IPC. The boundaries of an
    IPC on this grid are a prefix of those of every IPC at least twice as large.

    Raises:
        ConfigError: explicit boundaries that do not rise to `ipc`.

    Example:
        >>> curriculum_boundaries(ScheduleConfig(ipc=50))
        (5, 10, 20, 50)
    """
    ipc, step = config.ipc, config.step
    if config.kind == "explicit":
        rising = all(a < b for a, b in zip(config.boundaries, config.boundaries[1:], strict=False))
        if not config.boundaries or config.boundaries[0] < 1 or not rising or config.boundaries[-1] != ipc:
            raise ConfigError(
                f"schedule.boundaries = {list(config.boundaries)} must rise from at least 1 to schedule.ipc = {ipc}, "
                "for example [5, 10] for ipc 10."
            )
        return config.boundaries
    if config.kind == "uniform":
        return (*range(step, ipc, step), ipc)
    curricula = max(0, (ipc // step).bit_length() - 1) + 1
    return (*(step << j for j in range(curricula - 1)), ipc)


def cut(whole: range, size: int) -> tuple[range, ...]:
    """Cut classes into blocks, or slices and epochs into shards: consecutive parts of `size`, the last may be smaller.

    Example:
        >>> cut(range(5, 10), 3)
        (range(5, 8), range(8, 10))
    """
    return tuple(range(a, min(a + size, whole.stop)) for a in range(whole.start, whole.stop, size))


def learning_steps(num_classes: int, steps: int, seed: int, order: int) -> tuple[tuple[int, ...], ...]:
    """Return the classes seen after each of `steps` steps of class-incremental learning (Fig. 5), ascending.

    Classes arrive in a random order, drawn from the stream (seed, order), in steps of equal size; if they do not divide
    evenly, the first steps have one class more. The last element is all classes.

    Raises:
        ConfigError: `steps` is not from 1 to half the number of classes; a first step of one class would have nothing
            to learn.
    """
    if not 1 <= steps <= num_classes // 2:
        raise ConfigError(
            f"--steps {steps} must be from 1 to {num_classes // 2}: each of {num_classes} classes comes in one step, "
            "and a step needs at least two."
        )
    arrival = host_rng(seed, "continual", "order", order).permutation(num_classes).tolist()
    size, larger = divmod(num_classes, steps)
    ends = [size * step + min(step, larger) for step in range(1, steps + 1)]
    return tuple(tuple(sorted(arrival[:end])) for end in ends)
