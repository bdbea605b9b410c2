"""From measured cells to the lines of a comparison table: margins, differences, robust scores, rank agreement."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cudd_core.robust_scores import augmentation_robust_score, label_robust_score
from cudd_core.significance import Difference, RankAgreement, deviation, kendall, welch

DISTILLED, RANDOM = "distilled", "random"
OWN, HARD, PLAIN = "recipe", "hard labels", "no augmentation"
"""Evaluation protocols: as in the recipe; on hard labels alone; without crops, flips and mixing."""

AS_IT_IS = "as it is"
"""The name of a variant without changes."""

LEAST_ARCHS = 3
"""Least number of architectures for which rank agreement is reported."""

VariantName = tuple[str, str]
"""The recipe, and what was changed in it."""


@dataclass(frozen=True)
class Cell:
    """One set evaluated with one architecture under one protocol.

    `values`: accuracies in [0, 1], one per independent unit. The unit is a network or, where distillation was repeated
    with other seeds, a distillation, whose value is the mean over its networks. `networks`: number of networks in all.
    `full_data`: accuracy of the same architecture trained on all of the data. `image_bytes`, `label_bytes`: of one
    distillation. `seconds`: device time for making the set, without the teacher, the final labels and evaluation; the
    mean over distillations. `identity`: equal for two cells that are the same measurement. `shared`: the variants that
    a merged cell stands for.
    """

    recipe: str
    variant: str
    method: str
    arch: str
    protocol: str
    ipc: int
    values: tuple[float, ...]
    networks: int
    teacher: float
    full_data: float | None
    image_bytes: int
    label_bytes: int
    seconds: float | None
    identity: tuple[str, ...]
    shared: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean over the units."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the units, None for one."""
        return deviation(self.values)


@dataclass(frozen=True)
class Line:
    """A cell with what it is compared to.

    `margin`: difference to random real images of the same variant, architecture and protocol. `against`: difference to
    the distilled set of the reference variant with the same architecture and protocol; None for that set itself. `lrs`,
    `ars`: DD-Ranking's scores. `ranks`: how far the set ranks architectures as all of the data does; the same for each
    architecture of the set.
    """

    cell: Cell
    margin: Difference | None
    against: Difference | None
    lrs: float | None = None
    ars: float | None = None
    ranks: RankAgreement | None = None


def tabulate(cells: Sequence[Cell], references: Mapping[VariantName, VariantName]) -> tuple[Line, ...]:
    """Return one line per cell, in the order of the cells; a baseline shared by several variants has a single line.

    No cell is left out for being worse. `references`: each variant's reference variant; a reference maps to itself.
    """
    found = {(c.recipe, c.variant, c.method, c.arch, c.protocol): c for c in cells}
    ranks = _rank_agreements(cells)
    lines = []
    for cell in _merged(cells):
        name = (cell.recipe, cell.variant)
        random = found.get((*name, RANDOM, cell.arch, cell.protocol))
        reference = found.get((*references[name], DISTILLED, cell.arch, cell.protocol))
        itself = reference is not None and reference.identity == cell.identity and cell.method == DISTILLED
        lines.append(
            Line(
                cell,
                welch(cell.values, random.values) if random is not None and cell.method != RANDOM else None,
                welch(cell.values, reference.values) if reference is not None and not itself else None,
                *_robust_scores(cell, found),
                ranks.get((*name, cell.method, cell.protocol)),
            )
        )
    return tuple(lines)


def _merged(cells: Iterable[Cell]) -> list[Cell]:
    """Merge baselines that are the same measurement; distilled sets stay apart, since each is a variant's result."""
    merged: dict[object, Cell] = {}
    for number, cell in enumerate(cells):
        same = (cell.recipe, cell.method, cell.arch, cell.protocol, cell.identity)
        key: object = number if cell.method == DISTILLED else same
        first = merged.setdefault(key, replace(cell, shared=()))
        merged[key] = replace(first, shared=(*first.shared, cell.variant))
    return list(merged.values())


def _robust_scores(
    cell: Cell, found: Mapping[tuple[str, str, str, str, str], Cell]
) -> tuple[float | None, float | None]:
    """Return LRS and ARS of a cell of the recipe's own protocol; None for each that lacks a measurement it needs."""
    if cell.protocol != OWN:
        return None, None

    def other(method: str, protocol: str) -> Cell | None:
        return found.get((cell.recipe, cell.variant, method, cell.arch, protocol))

    random, hard = other(RANDOM, OWN), other(cell.method, HARD)
    plain, random_plain = other(cell.method, PLAIN), other(RANDOM, PLAIN)
    lrs = ars = None
    if random is not None and hard is not None and cell.full_data is not None:
        lrs = label_robust_score(cell.mean, hard.mean, random.mean, cell.full_data)
    if random is not None and plain is not None and random_plain is not None:
        ars = augmentation_robust_score(cell.mean, plain.mean, random.mean, random_plain.mean)
    return lrs, ars


def _rank_agreements(cells: Iterable[Cell]) -> dict[tuple[str, str, str, str], RankAgreement]:
    """Return agreement by recipe, variant, method and protocol, if enough architectures were trained on all data."""
    pairs: defaultdict[tuple[str, str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for cell in cells:
        if cell.full_data is not None:
            pairs[cell.recipe, cell.variant, cell.method, cell.protocol].append((cell.mean, cell.full_data))
    return {
        name: kendall([mean for mean, _ in some], [full for _, full in some])
        for name, some in pairs.items()
        if len(some) >= LEAST_ARCHS
    }
