"""The summary as the report reads it, and figures as words. Its keys are a contract (docs/design.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cudd_core.reporting.tables import mean_and_spread

METHODS = {
    "distilled": ("Distilled", "the synthetic images of this run"),
    "selection": ("Selection", "the real images that the run selected, not optimised"),
    "random": ("Random real", "as many real images, drawn at random; same teacher, labels and epochs"),
    "herding": ("Herding", "real images whose mean follows their class's in the teacher's features (Welling, 2009)"),
    "kcenter": ("k-center", "real images near which all others lie in the teacher's features (Gonzalez, 1985)"),
    "sre2l": ("SRe2L", "synthesis from noise without curricula (Yin et al., 2023)"),
    "cda": ("CDA", "SRe2L with crops that go from easy to hard (Yin and Shen, 2024)"),
}
CURRICULUM_STAGES = ("classify", "select", "synthesize", "relabel", "train_student")
TIERS = {
    "right_and_wrong": ("teacher right, student wrong", "what the student has yet to learn: the first choice"),
    "right": ("teacher right", "taken once the first pool was empty"),
    "wrong": (
        "teacher wrong",
        "the student too, if there was one; taken once the teacher got no other one right",
    ),
    "any": ("any", "drawn without asking either network"),
    "student_right": ("student alone right", "taken last of all"),
}
LABEL_FORMS = {
    "full": "all logits in 16 bits",
    "int8": "all logits in 8 bits",
    "topk": "the {top} largest logits of each image in 16 bits",
    "topk-int8": "the {top} largest logits of each image in 8 bits",
    "none": "not stored: the teacher gives them while networks train",
}
MISSING = "–"


@dataclass(frozen=True)
class Score:
    """Accuracy of one method on one architecture over `n` networks, as fractions; `std` is None for one network."""

    mean: float
    std: float | None
    n: int
    values: tuple[float, ...]


def scores(accuracy: Mapping[str, Any]) -> dict[str, dict[str, Score]]:
    """Return method → architecture → score, in the order of `METHODS`. All methods have the same architectures."""
    return {
        method: {arch: _score(found) for arch, found in accuracy[method].items()}
        for method in METHODS
        if method in accuracy
    }


def _score(found: Mapping[str, Any]) -> Score:
    std = found["std"] if found["n"] > 1 else None
    return Score(found["mean"], std, found["n"], tuple(found["values"]))


def method_name(method: str) -> str:
    """Return the name of a method as a reader sees it."""
    return METHODS[method][0] if method in METHODS else method


def percent(fraction: float | None) -> str:
    """0.681 → "68.1 %"."""
    return MISSING if fraction is None else f"{100 * fraction:.1f}\u00a0%"


def spread(score: Score, unit: str = "") -> str:
    """Return mean ± standard deviation in per cent, the latter only if more than one network was trained."""
    return mean_and_spread(score.mean, score.std) + unit


def duration(seconds: float | None) -> str:
    """4.2 → "4.2 s", 754 → "12 min 34 s", 11100 → "3 h 05 min"."""
    if seconds is None:
        return MISSING
    if 0 < seconds < 0.05:
        return "< 0.1\u00a0s"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min\u00a0{rest:02d}\u00a0s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}\u00a0h\u00a0{minutes:02d}\u00a0min"


def size(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1023.95:
            return f"{count:.0f}\u00a0B" if unit == "B" else f"{count:.1f}\u00a0{unit}"
        count /= 1024
    return f"{count:.1f}\u00a0TiB"


def hard_labels(summary: Mapping[str, Any]) -> bool:
    """Whether the evaluated networks were trained on the classes alone."""
    return bool(summary["config"]["evaluation"]["labels"] == "hard")


def soft_labels(summary: Mapping[str, Any]) -> str:
    """Say how many bytes the soft labels take, in which form, and how often each is used if more than once."""
    if hard_labels(summary):
        return "none: the classes alone"
    relabel = summary["config"]["relabel"]
    used = f", each used {relabel['reuse']} times" if relabel["reuse"] > 1 else ""
    return f"{size(summary['dataset']['label_bytes'])}, {LABEL_FORMS[relabel['storage']].format(**relabel)}{used}"


def address(uri: str) -> str:
    """Return the URI without user, password, query and fragment: reports get passed around, credentials must not."""
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "(unreadable address)"
    if not parts.scheme or "://" not in uri:
        return uri
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def seeds(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return every field of the configuration named `seed` or `seeds`: dotted path, value."""
    found: list[tuple[str, str]] = []
    for key, value in config.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += seeds(value, f"{path}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            found += seeds({str(n): each for n, each in enumerate(value) if isinstance(each, Mapping)}, f"{path}.")
        elif key in ("seed", "seeds") and value is not None:
            found.append((path, str(value)))
    return found


def stage_name(stage: str) -> str:
    """Return the name of a stage as a reader sees it."""
    return stage.replace("_", " ")
