"""Random real images, selection only and SRe2L as configurations of the same stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.schedule import ScheduleConfig
from cudd_core.stages.select import SelectConfig

Baseline = Literal["random", "sre2l"]
"""Baselines that are a configuration; `selection` is the distilled run's own originals T_{1:J}, kept as they are."""


@dataclass(frozen=True)
class Method:
    """What determines a synthetic set, given a teacher and the data."""

    schedule: ScheduleConfig
    select: SelectConfig
    synthesis: SynthesisConfig

    @property
    def uses_students(self) -> bool:
        """Whether a later curriculum needs the student of the one before it."""
        synthesis = self.synthesis
        adversarial = synthesis.enabled and synthesis.objective == "cudd" and synthesis.weight_adv > 0
        return self.select.policy == "curriculum" or adversarial


def baseline(name: Baseline, method: Method) -> Method:
    """Return `method` turned into a baseline with the same images per class, batches and iterations.

    `random`: any real images, unoptimised. `sre2l`: one curriculum from Gaussian noise, L_ce + L_bn alone (Eq. 3),
    and no switch of ours.
    """
    ipc = method.schedule.ipc
    schedule = method.schedule.model_copy(update={"kind": "explicit", "boundaries": (ipc,)})
    if name == "random":
        return Method(schedule, SelectConfig(policy="random"), method.synthesis.model_copy(update={"enabled": False}))
    changes = {"enabled": True, "init": "noise", "weight_reg": 0.0, "weight_adv": 0.0}
    synthesis = SynthesisConfig.model_validate(
        {**method.synthesis.model_dump(), **changes, **SynthesisConfig.switches_off()}
    )
    return Method(schedule, SelectConfig(policy="correct"), synthesis)
