"""The paper's ablations as tables of settings: what `cudd compare --ablation NAME` runs. Nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Ablation:
    """`paper`: its table or figure there; `asks`: the question that it answers.

    `variants`: label → settings, as `--set` takes them. `reference`: the label that the others are compared with.
    """

    paper: str
    asks: str
    variants: Mapping[str, tuple[str, ...]]
    reference: str

    @property
    def question(self) -> str:
        """The question and its place in the paper, in one sentence."""
        return f"{self.asks.rstrip('.')} ({self.paper} of the paper)."


# A step larger than any ipc leaves one curriculum, whatever the recipe's ipc is.
_ONE_CURRICULUM = ("schedule.kind=uniform", "schedule.step=5000")
_SRE2L = (
    *_ONE_CURRICULUM,
    *("select.policy=correct", "synthesis.init=noise", "synthesis.weight_reg=0", "synthesis.weight_adv=0"),
    # SRe2L has none of the switches that a recipe may have turned on.
    *("synthesis.crop_anneal=off", "synthesis.bn_statistics=running"),
    *("synthesis.class_order=sequence", "synthesis.iteration_decay=1"),
)

ABLATIONS: dict[str, Ablation] = {
    "terms": Ablation(
        "Eq. 6",
        "What each term of the loss adds: all of them but one.",
        {
            **{f"no L_{term}": (f"synthesis.weight_{term}=0",) for term in ("ce", "bn", "reg", "adv")},
            "all terms": (),
        },
        "all terms",
    ),
    "objective": Ablation(
        "Table V",
        "What L_adv and L_reg add, alone and together.",
        {
            "neither": ("synthesis.weight_adv=0", "synthesis.weight_reg=0"),
            "adv": ("synthesis.weight_reg=0",),
            "reg": ("synthesis.weight_adv=0",),
            "adv + reg": (),
        },
        "adv + reg",
    ),
    "regularization": Ablation(
        "Table VI",
        "L_reg on pixels or on the teacher's features.",
        {"pixel": ("synthesis.regularization=pixel",), "feature": ("synthesis.regularization=feature",)},
        "pixel",
    ),
    "init": Ablation(
        "Table VII",
        "What starting from real images adds, to SRe2L and to CUDD.",
        {
            "SRe2L, noise": _SRE2L,
            "SRe2L, real": (*_SRE2L, "synthesis.init=real"),
            "CUDD, noise, no reg": ("synthesis.init=noise", "synthesis.weight_reg=0"),
            "CUDD, real, no reg": ("synthesis.weight_reg=0",),
            "CUDD": (),
        },
        "CUDD",
    ),
    "alpha-adv": Ablation(
        "Table VIII",
        "How much α_adv matters.",
        {f"α_adv = {value}": (f"synthesis.weight_adv={value}",) for value in (0.3, 1, 3)},
        "α_adv = 1",
    ),
    "alpha-reg": Ablation(
        "Table IX",
        "How much α_reg matters.",
        {f"α_reg = {value}": (f"synthesis.weight_reg={value}",) for value in (0.3, 1, 3)},
        "α_reg = 1",
    ),
    "teacher-correct": Ablation(
        "Table X",
        "L_adv only where the teacher is right, or everywhere.",
        {
            "none": ("synthesis.teacher_correct_only=false",),
            "constraint": ("synthesis.teacher_correct_only=true",),
        },
        "constraint",
    ),
    "schedule": Ablation(
        "Fig. 7",
        "Doubling curricula, one every 5 images, or all at once. The paper's IPC is 40.",
        {
            "logarithmic": ("schedule.kind=logarithmic",),
            "uniform": ("schedule.kind=uniform",),
            "one curriculum": _ONE_CURRICULUM,
        },
        "logarithmic",
    ),
    "warm-start": Ablation(
        "Fig. 8",
        "Students that go on from the one before, or start from scratch at full length. The paper's IPC is 20 and 50.",
        {
            # No curriculum needs the last student, but its accuracy is the end of the figure's curve.
            "from the one before": ("student.warm_start=true", "student.train_last=true"),
            "from scratch": ("student.warm_start=false", "student.train_last=true"),
        },
        "from the one before",
    ),
    "cost": Ablation("Table XI", "Where the time goes.", {"SRe2L": _SRE2L, "CUDD": ()}, "CUDD"),
}
"""Name → table or figure of the paper. Settings that are not listed here are the recipe's."""
