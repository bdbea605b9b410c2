"""Baselines are configurations of the same stages."""

from __future__ import annotations

from typing import get_args

import pytest

from cudd_core.baselines import Configured, Method, baseline
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.schedule import ScheduleConfig, curriculum_boundaries
from cudd_core.stages.select import SelectConfig

CUDD = Method(
    ScheduleConfig(ipc=50, block_size=7, slices_per_shard=3),
    SelectConfig(),
    SynthesisConfig(
        iterations=123,
        batch_size=9,
        learning_rate=0.1,
        weight_bn=0.05,
        jitter=2,
        flip=False,
        crop_anneal="cosine",
        class_order="permuted",
        iteration_decay=0.5,
        bn_statistics="pool",
    ),
)


@pytest.mark.parametrize("name", get_args(Configured))
@pytest.mark.parametrize("ipc", [1, 10, 50])
def test_one_curriculum_of_the_same_size(name: Configured, ipc: int) -> None:
    method = Method(CUDD.schedule.model_copy(update={"ipc": ipc}), CUDD.select, CUDD.synthesis)
    schedule = baseline(name, method).schedule
    assert curriculum_boundaries(schedule) == (ipc,)
    units = {"kind", "boundaries"}
    assert schedule.model_dump(exclude=units) == method.schedule.model_dump(exclude=units)
    ScheduleConfig.model_validate(schedule.model_dump())


@pytest.mark.parametrize("name", get_args(Configured))
def test_every_baseline_is_a_valid_configuration_that_needs_no_student(name: Configured) -> None:
    method = baseline(name, CUDD)
    assert SynthesisConfig.model_validate(method.synthesis.model_dump()) == method.synthesis
    assert not method.uses_students and not method.select.asks_student
    assert baseline(name, method) == method, "a baseline of a baseline is itself"


@pytest.mark.parametrize("name", ["random", "herding", "kcenter"])
def test_real_images_are_kept_as_they_are(name: Configured) -> None:
    method = baseline(name, CUDD)
    assert method.select.policy == name and not method.synthesis.enabled
    assert not method.select.asks_teacher
    assert method.select.geometric == (name != "random")


def test_cda_is_sre2l_with_crops_from_easy_to_hard() -> None:
    cda, sre2l = baseline("cda", CUDD), baseline("sre2l", CUDD)
    assert cda.synthesis.model_dump() == sre2l.synthesis.model_dump() | {"crop_anneal": "cosine"}
    assert (cda.schedule, cda.select) == (sre2l.schedule, sre2l.select)


def test_sre2l_is_noise_with_cross_entropy_and_statistics_alone() -> None:
    method = baseline("sre2l", CUDD)
    changed = {"init": "noise", "weight_reg": 0.0, "weight_adv": 0.0}
    changed |= {"crop_anneal": "off", "class_order": "sequence", "iteration_decay": 1.0, "bn_statistics": "running"}
    assert method.synthesis.model_dump() == CUDD.synthesis.model_dump() | changed
    assert method.synthesis.enabled and not method.uses_students


@pytest.mark.parametrize(
    ("policy", "enabled", "weight_adv", "needed"),
    [
        ("curriculum", True, 1.0, True),
        ("curriculum", True, 0.0, True),
        ("curriculum", False, 1.0, True),
        ("correct", True, 1.0, True),
        ("correct", True, 0.0, False),
        ("correct", False, 1.0, False),
        ("random", False, 1.0, False),
        ("herding", False, 1.0, False),
        ("kcenter", False, 1.0, False),
    ],
)
def test_students_are_trained_only_where_something_asks_them(
    policy: str, enabled: bool, weight_adv: float, needed: bool
) -> None:
    synthesis = SynthesisConfig(enabled=enabled, weight_adv=weight_adv)
    method = Method(ScheduleConfig(), SelectConfig.model_validate({"policy": policy}), synthesis)
    assert method.uses_students == needed
