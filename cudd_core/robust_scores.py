"""DD-Ranking's scores: how much of an accuracy is due to the images, not to labels or augmentation (Li et al., 2025).

All accuracies are fractions of one test split, reached by networks of one architecture. Scores are in [0, 1] and grow
with what the images themselves contribute; 0.269 (α or β = 0) means that no contribution was found.
"""

from __future__ import annotations

import math

_WEIGHT = 0.5
"""w of LRS and γ of ARS, DD-Ranking's own."""


def label_robust_score(soft: float, hard: float, random_soft: float, full_hard: float) -> float:
    """Return LRS = (e^α − e⁻¹) / (e − e⁻¹) with α = w · IOR − (1 − w) · HLR.

    Args:
        soft: the set under its own labels.
        hard: the set on its classes alone.
        random_soft: as many random real images under the same kind of labels. IOR = soft − random_soft.
        full_hard: all of the data on its classes. HLR = full_hard − hard: what hard labels do not recover.

    Example:
        >>> round(label_robust_score(soft=0.7, hard=0.9, random_soft=0.7, full_hard=0.9), 3)
        0.269
    """
    return _scaled(_WEIGHT * (soft - random_soft) - (1 - _WEIGHT) * (full_hard - hard))


def augmentation_robust_score(augmented: float, plain: float, random_augmented: float, random_plain: float) -> float:
    """Return ARS = (e^β − e⁻¹) / (e − e⁻¹) with β = γ · IOR_aug + (1 − γ) · IOR_plain.

    Args:
        augmented, plain: the set, trained on with and without augmentation.
        random_augmented, random_plain: as many random real images, likewise.

    Example:
        >>> round(augmentation_robust_score(0.6, 0.5, 0.6, 0.5), 3)
        0.269
    """
    return _scaled(_WEIGHT * (augmented - random_augmented) + (1 - _WEIGHT) * (plain - random_plain))


def _scaled(value: float) -> float:
    """Map [−1, 1] onto [0, 1]."""
    return (math.exp(value) - math.exp(-1)) / (math.e - math.exp(-1))
