"""Baselines as configurations of the same stages: random, herding and k-center images, SRe2L, CDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.schedule import ScheduleConfig
from cudd_core.stages.select import SelectConfig

Configured = Literal["random", "herding", "kcenter", "sre2l", "cda"]
"""Baselines that are a configuration; `selection` is the distilled run's own originals T_{1:J}, kept as they are."""


@dataclass(frozen=True)
class Method:
    """What determines a synthetic set, given a teacher and the data."""

    schedule: ScheduleConfig
    select: SelectConfig
    synthesis: SynthesisConfig

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher's verdicts on the training set are needed: to choose images, or for their statistics."""
        return self.select.asks_teacher or self.synthesis.uses_pool_statistics

    @property
    def uses_students(self) -> bool:
        """Whether a later curriculum needs the student of the one before it."""
        synthesis = self.synthesis
        adversarial = synthesis.enabled and synthesis.objective == "cudd" and synthesis.weight_adv > 0
        return self.select.asks_student or adversarial


def baseline(name: Configured, method: Method) -> Method:
    """Return `method` turned into a baseline with the same images per class, batches and iterations.

    All have one curriculum and no switch of ours. `random`, `herding`, `kcenter`: real images, unoptimised, chosen
    blindly or by what the teacher sees in them. `sre2l`: from Gaussian noise, L_ce + L_bn alone (Eq. 3). `cda`: the
    same with crops that go from easy to hard (Yin and Shen, 2023).
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
