"""Baselines as configurations of the same stages: random, herding and k-center images, SRe2L, CDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.schedule import ScheduleConfig
from cudd_core.stages.select import SelectConfig

Configured = Literal["random", "herding", "kcenter", "sre2l", "cda"]
"""Baselines made by configuration. One more, `selection`, is the distilled run's own originals T_{1:J}, unchanged."""


@dataclass(frozen=True)
class Method:
    """Everything that determines a synthetic set, given a teacher and the data."""

    schedule: ScheduleConfig
    select: SelectConfig
    synthesis: SynthesisConfig

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's verdicts on the training set are needed: to select images, or for pool statistics."""
        return self.select.asks_teacher or self.synthesis.uses_pool_statistics

    @property
    def uses_students(self) -> bool:
        """Whether each curriculum after the first needs the student of the previous one."""
        synthesis = self.synthesis
        adversarial = synthesis.minimises_eq_6 and synthesis.weight_adv > 0
        return self.select.asks_student or adversarial


def baseline(name: Configured, method: Method) -> Method:
    """Return the baseline `name` derived from `method`, with the same images per class, batches and iterations.

    Every baseline has a single curriculum and uses none of this package's own switches. `random`, `herding`, `kcenter`:
    real images, not optimised, drawn at random or selected by the teacher's features. `sre2l`: starts from Gaussian
    noise and minimises L_ce + L_bn alone (Eq. 3). `cda`: the same, with crops that go from easy to hard (Yin and Shen,
    2024).
    """
    ipc = method.schedule.ipc
    schedule = method.schedule.model_copy(update={"kind": "explicit", "boundaries": (ipc,)})
    if name in ("random", "herding", "kcenter"):
        kept = method.synthesis.model_copy(update={"enabled": False})
        return Method(schedule, SelectConfig(policy=name), kept)
    changes = {"enabled": True, "init": "noise", "weight_reg": 0.0, "weight_adv": 0.0}
    crops = {"crop_anneal": "cosine"} if name == "cda" else {}
    synthesis = SynthesisConfig.model_validate(
        {**method.synthesis.model_dump(), **changes, **SynthesisConfig.switches_off(), **crops}
    )
    return Method(schedule, SelectConfig(policy="correct"), synthesis)
