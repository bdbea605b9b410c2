"""Select: T_j of Eq. 5, drawn without replacement from R(θ*) ∩ W(φ_{j-1}) minus T_{1:j-1}; and simpler policies."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from cudd_core.configuration import Configuration
from cudd_core.coresets import herding, k_center
from cudd_core.data.labels import positions_of
from cudd_core.errors import DataError
from cudd_core.records import TIERS, Features, Selection, Verdicts
from cudd_core.seeding import host_rng

VERSION = 2

GEOMETRIC = {"herding": herding, "kcenter": k_center}
"""Policies that use only the teacher's features and draw nothing at random."""


class SelectConfig(Configuration):
    """How the originals are chosen."""

    policy: Literal["curriculum", "correct", "random", "herding", "kcenter"] = Field(
        "curriculum",
        description="Eq. 5; R(θ*) whatever the student predicts; any image (the random baseline); or images that "
        "represent their class in the teacher's feature space: herding, k-center.",
    )

    @property
    def asks_teacher(self) -> bool:
        """Whether the policy needs R(θ*)."""
        return self.policy in ("curriculum", "correct")

    @property
    def asks_student(self) -> bool:
        """Whether the policy needs W(φ_{j-1})."""
        return self.policy == "curriculum"

    @property
    def geometric(self) -> bool:
        """Whether the policy needs the teacher's features and draws nothing at random."""
        return self.policy in GEOMETRIC


def select(
    labels: Tensor,
    classes: range,
    slices: range,
    teacher: Verdicts | None,
    student: Verdicts | None,
    used: Tensor,
    config: SelectConfig,
    seed: int,
    features: Features | None = None,
) -> Selection:
    """Choose len(slices) originals for every class of a block, never one of `used`.

    For each class the pools are emptied in the order R∩W, R\\W, wrong for both, right for the student alone, each in
    random order; without a student (j = 1) W is everything. The draw for a class depends on (seed, policy, first slice,
    class) and on the verdicts, not on the block's extent. Geometric policies continue from `used` and draw nothing.

    Args:
        labels: int64 [N], the split's labels.
        classes: labels of the block.
        slices: numbers of the slices that this curriculum adds.
        teacher: verdicts of θ* on the block; None if the policy does not need them.
        student: verdicts of φ_{j-1} on the block; None at j = 1.
        used: int64 [u], positions selected in earlier curricula.
        features: features of θ* on the block, for geometric policies.

    Raises:
        DataError: a class has fewer unused images than slices.
    """
    count = len(slices)
    indices = torch.empty(count, len(classes), dtype=torch.int64)
    tiers = torch.empty(count, len(classes), dtype=torch.int64)
    right = teacher.correct(labels) if teacher is not None else torch.ones(len(labels), dtype=torch.bool)
    known = student.correct(labels) if student is not None and config.asks_student else None
    free = torch.ones(len(labels), dtype=torch.bool)
    free[used] = False
    # The split is searched once per block, not once per class.
    block = positions_of(labels, classes)
    block = block[free[block]]
    for column, label in enumerate(classes):
        pool = block[labels[block] == label]
        if len(pool) < count:
            raise DataError(
                f"Class {label} has {len(pool)} unused images but {count} more are needed per class. "
                "Lower schedule.ipc or give the class more images."
            )
        if config.geometric:
            assert features is not None
            indices[:, column] = _by_geometry(features, labels, label, used, count, config.policy)
            tiers[:, column] = TIERS.index("any")
            continue
        rng = host_rng(seed, "select", config.policy, slices.start, label)
        pool = pool[torch.from_numpy(rng.permutation(len(pool)))]
        if config.policy == "random":
            tier = torch.full((len(pool),), TIERS.index("any"))
        else:
            tier = torch.where(right[pool], TIERS.index("right_and_wrong"), TIERS.index("wrong"))
            if known is not None:
                tier[right[pool] & known[pool]] = TIERS.index("right")
                tier[~right[pool] & known[pool]] = TIERS.index("student_right")
        order = torch.argsort(tier, stable=True)[:count]
        indices[:, column] = pool[order]
        tiers[:, column] = tier[order]
    return Selection(
        classes=torch.arange(classes.start, classes.stop), first_slice=slices.start, indices=indices, tiers=tiers
    )


def check_class_sizes(labels: Tensor, class_names: tuple[str, ...], ipc: int) -> None:
    """Raise DataError, before any work is done, if some class has fewer than `ipc` images."""
    counts = torch.bincount(labels, minlength=len(class_names))
    smallest = int(counts.argmin())
    if int(counts[smallest]) < ipc:
        raise DataError(
            f"schedule.ipc = {ipc}, but class {class_names[smallest]!r} has only {int(counts[smallest])} images. "
            f"Set schedule.ipc to at most {int(counts[smallest])}."
        )


def _by_geometry(features: Features, labels: Tensor, label: int, used: Tensor, count: int, policy: str) -> Tensor:
    """Return positions int64 [count] of images that, together with those in `used`, represent a class."""
    rows = (labels[features.indices] == label).nonzero().flatten()
    members = features.indices[rows]
    # In the order in which they were picked, as in `used`.
    before = torch.searchsorted(members, used[labels[used] == label])
    picks = GEOMETRIC[policy](features.features[rows], count, before)
    return members[picks]
