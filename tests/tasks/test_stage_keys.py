"""Field by field: which settings of a recipe change the key of which stage, and which must not.

The real flow and the real tasks run from top to bottom, without a server; only `cached_stage`, which would compute, is
replaced by one that writes down what it was asked for.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import BaseModel
from safetensors.torch import save_file

from cudd_core.canonical import canonical_json
from cudd_core.compute.runtime import ComputeConfig
from cudd_core.configuration import Switch
from cudd_core.data import open_split
from cudd_core.data.source import DataConfig
from cudd_core.stages.relabel import RelabelConfig
from cudd_core.stages.train_network import EvaluationConfig
from flows import distill as flow
from flows.catalogue import STAGES
from flows.recipe import Recipe, field_paths
from flows.recipes import apply_overrides
from flows.run import PipelineRun
from flows.summary import illustrate
from flows.walk import Walk
from tasks import laboratory
from tasks.context import DataRef, StageContext
from tasks.keys import stage_key
from tasks.ledger import Ledger
from tasks.measure import measure_set
from tasks.refs import Ref
from tasks.store import Store

ALL = frozenset(STAGES) - {"statistics", "train_expert"}
"""Stages of a run of Eq. 6 without switches."""
TRAIN_DATA = frozenset({"squeeze", "classify", "features", "select", "synthesize", "keep", "assemble", "report"})
DATA = TRAIN_DATA | {"preflight", "measure"}
DRAWS = frozenset({"squeeze", "select", "synthesize", "relabel", "train_student", "train_network"})
"""Stages with a random stream."""
COMPUTES = ALL - {"select", "keep", "assemble", "report"}
"""Stages that run a network."""
NONE = frozenset[str]()

BASE = (
    *("data.source=image_folder", "data.channels=3", "data.image_size=8", "synthesis.jitter=1"),
    *("teacher.arch=convnet1-w4", "schedule.ipc=20", "schedule.step=5"),
    # One baseline that asks the teacher's features, so that every stage is met.
    "baselines=random,selection,herding",
    # Every number of epochs below is another one, so that no task stands for two.
    *("student.training.epochs=60", "evaluation.training.epochs=80", "relabel.epochs_per_shard=50"),
    "evaluation.training.batch_size=32",
)


@dataclass
class Recording:
    """What the stages of one run were asked for: full keys, and what of them is the stage's own."""

    keys: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    own: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def cached_stage(
        self, store: Store, *, stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], **_: Any
    ) -> Ref:
        key = stage_key(stage, version, config, inputs)
        # Inputs from other stages count by kind alone: that their content counts is `stage_key`'s test.
        names = sorted({re.sub(r" \d+$", "", name) for name in inputs})
        outside = {name: inputs[name] for name in ("data", "weights") if name in inputs}
        self.keys[stage].add(key)
        self.own[stage].add(canonical_json([version, config, names, outside]))
        # The worst case: another key gives another output.
        return Ref(stage, key, "run", key[::-1], 1)

    def lost(self, other: Recording) -> set[str]:
        """Stages of this run some output of which `other` cannot reuse."""
        return {stage for stage in self.keys if not self.keys[stage] <= other.keys[stage]}

    def own_lost(self, other: Recording) -> set[str]:
        return {stage for stage in self.own if not self.own[stage] <= other.own[stage]}


def record(recipe: Recipe) -> Recording:
    """Let the flow's main job ask for everything that `recipe` needs."""
    recording = Recording()

    @contextmanager
    def opened_run(recipe: Recipe, *_: object) -> Iterator[PipelineRun]:
        train, test = (open_split(recipe.data, split) for split in (recipe.data.train_split, recipe.data.test_split))
        data = DataRef(recipe.data, train.digest, test.digest, len(train.class_names))
        yield Walk(StageContext(cast(Store, None), data, recipe.compute, recipe.seed, "run"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.call.cached_stage", recording.cached_stage)
        patch.setattr(flow, "opened_run", opened_run)
        patch.setattr(flow, "finish", illustrate)
        flow.main_job(recipe)
    return recording


# ---- data -----------------------------------------------------------------------------------------------------------


def png(seed: int, grey: bool = False) -> bytes:
    shape = (8, 8) if grey else (8, 8, 3)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_images(root: Path, split: str, grey: bool = False) -> None:
    for label, name in enumerate("abc"):
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"{number}.png").write_bytes(png(100 * len(split) + 10 * label + number, grey))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Name → root. `here` holds the same images as `there`, under more names, and other ones as Parquet."""
    top = tmp_path_factory.mktemp("places")
    for split in ("train", "test"):
        write_images(top / "here", split)
        write_images(top / "grey", split, grey=True)
    shutil.copytree(top / "here", top / "there")
    shutil.copytree(top / "here" / "train", top / "here" / "train2")
    shutil.copytree(top / "here" / "test", top / "here" / "val")
    for split in ("train", "test"):
        table = pa.table({"image": [png(seed) for seed in range(6)], "label": [0, 1, 2, 0, 1, 2]})
        (top / "here" / "data").mkdir(exist_ok=True)
        pq.write_table(table, top / "here" / "data" / f"{split}-00000-of-00001.parquet")
    for name in ("here", "there"):
        save_file({"a": torch.zeros(2)}, top / name / "teacher.safetensors")
    save_file({"a": torch.ones(2)}, top / "grey" / "teacher.safetensors")
    return {path.name: path for path in top.iterdir()}


@pytest.fixture(scope="module")
def base(places: dict[str, Path]) -> Recipe:
    return apply_overrides(Recipe(name="base"), [*BASE, f"data.root={places['here']}"])


@pytest.fixture(scope="module")
def recorded(base: Recipe) -> Recording:
    return record(base)


def changed(base: Recipe, places: dict[str, Path], *settings: str) -> Recipe:
    known = {name: str(path) for name, path in places.items()}
    return apply_overrides(base, [re.sub(r"<(\w+)>", lambda match: known[match[1]], text) for text in settings])


# ---- the table ------------------------------------------------------------------------------------------------------

SQUEEZE, SYNTHESIZE, NETWORK = frozenset({"squeeze"}), frozenset({"synthesize"}), frozenset({"train_network"})
STUDENT, LABELS, REPORT = frozenset({"train_student"}), frozenset({"relabel"}), frozenset({"report"})
REPLAYED = LABELS | STUDENT | NETWORK

TABLE: dict[str, tuple[str, frozenset[str]]] = {
    # For people, and where things lie.
    "name": ("other", NONE),
    "description": ("words", NONE),
    "dataset": ("letters", NONE),
    "data.root": ("<there>", NONE),
    "data.name": ("CIFAR10", NONE),
    "data.train_split": ("train2", NONE),
    "data.test_split": ("val", NONE),
    "data.image_column": ("image", NONE),
    "data.label_column": ("label", NONE),
    "data.greyscale": ("convert", NONE),
    "data.colour": ("convert", NONE),
    "data.cache": ("false", NONE),
    # What the images are.
    "data.source": ("hf_parquet", DATA),
    "data.image_size": ("9", DATA),
    "data.channels": ("1 data.root=<grey>", DATA),
    "data.white": ("4095", DATA),
    "data.limit_per_class": ("2", DATA),
    "seed": ("1", DRAWS),
    # The teacher; what only loaded ones have counts for those alone.
    "teacher.source": ("timm", SQUEEZE),
    "teacher.arch": ("convnet1-w8", SQUEEZE | NETWORK | REPORT),
    "teacher.weights": ("IMAGENET1K_V1", NONE),
    "teacher.class_names": ("a,b,c", NONE),
    "teacher.class_order": ("as_data", NONE),
    "teacher.mean": ("0.5,0.5,0.5", NONE),
    "teacher.std": ("0.5,0.5,0.5", NONE),
    "teacher.training.optimizer": ("adamw", SQUEEZE),
    "teacher.training.learning_rate": ("0.2", SQUEEZE),
    "teacher.training.weight_decay": ("0", SQUEEZE),
    "teacher.training.epochs": ("7", SQUEEZE),
    "teacher.training.batch_size": ("7", SQUEEZE),
    "teacher.training.cosine_stretch": ("2", SQUEEZE),
    "teacher.training.ema_decay": ("0.5", SQUEEZE),
    "teacher.crop": ("none", SQUEEZE),
    "teacher.flip": ("false", SQUEEZE),
    "teacher.minimum_margin": ("0.5", frozenset({"preflight"})),
    "teacher.seed": ("1", SQUEEZE),
    "teacher.threads": ("2", SQUEEZE),
    # What another teacher adds is one more; what it teaches is another: labels enter trainings by their digest.
    "other_teachers": ('[{"seed":1}]', SYNTHESIZE | LABELS),
    # How the work is cut. The random baseline draws all its images at once.
    "schedule.ipc": ("40", frozenset({"select", "report"})),
    "schedule.kind": ("uniform", frozenset({"select", "synthesize", "keep", "report"})),
    "schedule.step": ("4", frozenset({"select", "synthesize", "keep", "report"})),
    "schedule.boundaries": ("5,10,20 schedule.kind=explicit", NONE),
    "schedule.block_size": ("2", frozenset({"classify", "features", "select"})),
    "schedule.slices_per_shard": ("2", frozenset({"synthesize", "keep"})),
    "select.policy": ("correct", frozenset({"select"})),
    # Eq. 6. Another objective reads none of its fields: they must be left alone.
    "synthesis.objective": ("mtt synthesis.jitter=4", SYNTHESIZE),
    "synthesis.enabled": ("false", SYNTHESIZE),
    "synthesis.init": ("noise", SYNTHESIZE),
    "synthesis.patch_grid": ("4", NONE),
    "synthesis.patch_candidates": ("9", NONE),
    "synthesis.iterations": ("7", SYNTHESIZE),
    "synthesis.iteration_decay": ("0.5", SYNTHESIZE),
    "synthesis.batch_size": ("7", SYNTHESIZE),
    "synthesis.learning_rate": ("0.5", SYNTHESIZE),
    "synthesis.weight_decay": ("0.5", SYNTHESIZE),
    "synthesis.weight_ce": ("2", SYNTHESIZE),
    "synthesis.weight_bn": ("2", SYNTHESIZE),
    "synthesis.first_bn_factor": ("2", SYNTHESIZE),
    "synthesis.bn_statistics": ("pool", SYNTHESIZE),
    "synthesis.class_order": ("permuted", SYNTHESIZE),
    "synthesis.weight_reg": ("2", SYNTHESIZE),
    "synthesis.weight_adv": ("2", SYNTHESIZE),
    "synthesis.regularization": ("feature", SYNTHESIZE),
    "synthesis.teacher_correct_only": ("false", SYNTHESIZE),
    "synthesis.crop_scale": ("0.5,1", SYNTHESIZE),
    "synthesis.crop_anneal": ("cosine", SYNTHESIZE),
    "synthesis.crops": ("image", SYNTHESIZE),
    "synthesis.flip": ("false", SYNTHESIZE),
    "synthesis.jitter": ("2", SYNTHESIZE),
    "synthesis.log_every": ("7", NONE),
    # Labels belong to pixels: whoever replays them reads the augmentation.
    "relabel.crop_scale": ("0.5,1", REPLAYED),
    "relabel.flip": ("false", REPLAYED),
    "relabel.mix": ("mixup", REPLAYED),
    "relabel.mix_alpha": ("0.5", REPLAYED),
    "relabel.batchnorm": ("batch", LABELS),
    # Training has other labels by another digest, which is an input; only what it replays is its own to read.
    "relabel.reuse": ("2", REPLAYED),
    "relabel.storage": ("int8", LABELS),
    "relabel.top": ("2", NONE),
    "relabel.epochs_per_shard": ("40", LABELS),
    "student.arch": ("convnet1-w8", STUDENT),
    "student.training.optimizer": ("sgd", STUDENT),
    "student.training.learning_rate": ("0.5", STUDENT),
    "student.training.weight_decay": ("0.5", STUDENT),
    "student.training.epochs": ("44", LABELS | STUDENT),
    "student.training.batch_size": ("7", LABELS | STUDENT),
    "student.training.cosine_stretch": ("2", STUDENT),
    "student.training.ema_decay": ("0.5", STUDENT),
    "student.temperature": ("4", STUDENT),
    "student.loss": ("mse", STUDENT),
    "student.hard_label_weight": ("0.5", STUDENT),
    "student.warm_start": ("false", LABELS | STUDENT),
    "student.warm_epoch_factor": ("0.25", LABELS | STUDENT),
    "student.warm_learning_rate": ("0.25", STUDENT),
    "student.checkpoint_every": ("7", NONE),
    "student.train_last": ("true", REPORT),
    "evaluation.archs": ("convnet1-w8", NETWORK | REPORT),
    "evaluation.seeds": ("5", REPORT),
    # Hard labels need no soft ones.
    "evaluation.labels": ("hard", LABELS | NETWORK),
    "evaluation.training.optimizer": ("sgd", NETWORK),
    "evaluation.training.learning_rate": ("0.5", NETWORK),
    "evaluation.training.weight_decay": ("0.5", NETWORK),
    "evaluation.training.epochs": ("44", LABELS | NETWORK),
    "evaluation.training.batch_size": ("7", LABELS | NETWORK),
    "evaluation.training.cosine_stretch": ("2", NETWORK),
    "evaluation.training.ema_decay": ("0.5", NETWORK),
    "evaluation.temperature": ("4", NETWORK),
    "evaluation.loss": ("mse", NETWORK),
    "evaluation.hard_label_weight": ("0.5", NETWORK),
    "evaluation.checkpoint_every": ("7", NONE),
    "baselines": ("random,selection,herding,sre2l", REPORT),
    "compute.device": ("cuda", COMPUTES),
    "compute.threads": ("2", COMPUTES),
    "compute.amp": ("bf16", COMPUTES),
    "compute.convolution": ("direct", COMPUTES),
    "compute.deterministic": ("false", COMPUTES),
    # Results are the same without graphs, but who turns them off wants to see it.
    "compute.graphs": ("false", COMPUTES),
    "compute.lanes": ("3", NONE),
    # As threads, it changes the order of sums; only a training has such processes.
    "compute.data_parallel": ("2", frozenset({"squeeze", "train_student", "train_network"})),
}
"""Field → another value (and what that needs), and the stages that must not reuse what the old value gave."""


EXPERTS = frozenset({"train_expert"})

MTT_TABLE: dict[str, tuple[str, frozenset[str]]] = {
    "synthesis.iterations": ("7", SYNTHESIZE),
    "synthesis.iteration_decay": ("0.5", SYNTHESIZE),
    "synthesis.log_every": ("7", NONE),
    "synthesis.mtt.arch": ("convnet2-in", EXPERTS),
    "synthesis.mtt.expert_epochs": ("51", EXPERTS),
    "synthesis.mtt.expert_batch_size": ("7", EXPERTS),
    "synthesis.mtt.expert_learning_rate": ("0.5", EXPERTS),
    "synthesis.mtt.crop": ("none", EXPERTS | SYNTHESIZE),
    "synthesis.mtt.flip": ("false", EXPERTS | SYNTHESIZE),
    "synthesis.mtt.steps": ("7", SYNTHESIZE),
    "synthesis.mtt.span": ("3", SYNTHESIZE),
    "synthesis.mtt.start_epochs": ("7", SYNTHESIZE),
    "synthesis.mtt.batch_size": ("7", SYNTHESIZE),
    "synthesis.mtt.step_size": ("0.5", SYNTHESIZE),
    "synthesis.mtt.step_size_learning_rate": ("0.5", SYNTHESIZE),
    "synthesis.mtt.pixel_learning_rate": ("7", SYNTHESIZE),
}
"""The same for trajectory matching. Eq. 6 refuses its fields, and it refuses Eq. 6's."""


def is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_every_field_is_in_the_table() -> None:
    known = {name for name, kind in field_paths(Recipe).items() if not is_section(kind)}
    assert set(TABLE) | set(MTT_TABLE) | {"synthesis.mtt.experts"} == known


def test_base_meets_every_stage(recorded: Recording) -> None:
    assert set(recorded.keys) == ALL


def test_the_same_recipe_asks_for_the_same(base: Recipe, recorded: Recording) -> None:
    assert record(base) == recorded


@pytest.mark.parametrize("name", list(TABLE))
def test_a_field_changes_the_keys_of_the_stages_that_read_it(
    name: str, base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    value, expected = TABLE[name]
    first, *others = value.split()
    other = record(changed(base, places, *others, f"{name}={first}"))
    assert recorded.own_lost(other) == expected
    if not expected:
        assert recorded.lost(other) == set()


def switches(section: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field marked as a switch, dotted, with the default that changes nothing."""
    for name, info in section.model_fields.items():
        if any(isinstance(mark, Switch) for mark in info.metadata):
            yield prefix + name, info.default
        if is_section(info.annotation):
            yield from switches(cast(type[BaseModel], info.annotation), f"{prefix}{name}.")


def mentioned(value: object) -> set[str]:
    """All names anywhere in a stage's configuration."""
    if isinstance(value, dict):
        return set(value) | set().union(*map(mentioned, value.values()))
    return set().union(*map(mentioned, value)) if isinstance(value, list) else set()


def test_a_switch_that_is_off_is_in_no_key(recorded: Recording) -> None:
    """So what was stored before the switch existed is found by a recipe that leaves it alone."""
    names = {path.rpartition(".")[2] for path, _ in switches()}
    assert "crop_anneal" in names
    for own in recorded.own.values():
        for text in own:
            assert not mentioned(json.loads(text)) & names


@pytest.mark.parametrize(
    ("settings", "stage"),
    [
        (("evaluation.loss=mse", "evaluation.hard_label_weight=0.025"), "train_network"),
        (("evaluation.training.ema_decay=0.9", "evaluation.training.cosine_stretch=2"), "train_network"),
        (("relabel.batchnorm=batch",), "relabel"),
    ],
)
def test_how_sets_are_labelled_and_evaluated_changes_for_baselines_alike(
    settings: tuple[str, ...], stage: str, base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    """Not one label or network of the set or of a baseline stays as it was."""
    other = record(changed(base, places, *settings))
    assert len(other.keys[stage]) == len(recorded.keys[stage]) > 1
    assert not other.keys[stage] & recorded.keys[stage]


def test_nothing_else_than_the_table_says_is_read_where_it_counts_most(
    base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    """However another evaluation or a stricter preflight is asked for, what is upstream is found again."""
    for setting in ("evaluation.training.epochs=44", "evaluation.temperature=4", "teacher.minimum_margin=0.5"):
        assert recorded.lost(record(changed(base, places, setting))) <= {
            *("preflight", "relabel", "train_network", "measure", "report")
        }


@pytest.mark.parametrize("name", ["seed", "compute.device", "compute.threads", "compute.amp", "compute.deterministic"])
def test_seed_and_compute_reach_every_stage_that_they_matter_to(
    name: str, base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    value, expected = TABLE[name]
    assert recorded.own_lost(record(changed(base, places, f"{name}={value}"))) >= expected


# ---- another objective ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def matched(base: Recipe, places: dict[str, Path]) -> Recipe:
    return changed(
        base, places, "synthesis.objective=mtt", "synthesis.jitter=4", "synthesis.mtt.experts=2",
        "synthesis.mtt.arch=convnet1-w4-in", "baselines=random",
    )  # fmt: skip


@pytest.mark.parametrize("name", list(MTT_TABLE))
def test_a_field_of_trajectory_matching_changes_the_keys_of_the_stages_that_read_it(
    name: str, matched: Recipe, places: dict[str, Path]
) -> None:
    value, expected = MTT_TABLE[name]
    first, other = record(matched), record(changed(matched, places, f"{name}={value}"))
    assert first.own_lost(other) == expected
    if not expected:
        assert first.lost(other) == set()


def test_one_task_a_curriculum_reads_all_experts_and_the_set_so_far(matched: Recipe, places: dict[str, Path]) -> None:
    first, more = record(matched), record(changed(matched, places, "synthesis.mtt.experts=3"))
    assert first.keys["train_expert"] < more.keys["train_expert"] and len(more.keys["train_expert"]) == 3
    assert not first.keys["synthesize"] & more.keys["synthesize"]
    own = [json.loads(text) for text in first.own["synthesize"]]
    assert sorted((config["curriculum"], config["slices"]) for _, config, _, _ in own) == [
        (1, [0, 5]), (2, [5, 10]), (3, [10, 20]),
    ]  # fmt: skip
    inputs = {config["curriculum"]: set(names) for _, config, names, _ in own}
    assert inputs[1] == {"data", "expert", "selection"} and inputs[2] == inputs[3] == inputs[1] | {"earlier"}


def test_an_objective_added_to_the_stage_of_eq_6_shares_no_images_with_it(base: Recipe, recorded: Recording) -> None:
    """And reads neither the fields of Eq. 6 nor the student, unless it says so."""
    added = base.synthesis.model_copy(update={"objective": "another"})
    other = record(base.model_copy(update={"synthesis": added}))
    assert not recorded.keys["synthesize"] & other.keys["synthesize"]
    for _, config, inputs, _ in (json.loads(text) for text in other.own["synthesize"]):
        assert config["objective"] == "another" and not mentioned(config) & {"mtt", "weight_ce", "jitter", "log_every"}
        assert "student" not in inputs


def test_selection_labels_and_evaluation_of_real_images_do_not_ask_which_objective(
    base: Recipe, matched: Recipe, places: dict[str, Path]
) -> None:
    eq6 = record(changed(base, places, "baselines=random"))
    ours = record(matched)
    for stage in ("squeeze", "preflight", "keep"):
        assert eq6.keys[stage] == ours.keys[stage]
    assert len(eq6.keys["train_network"] & ours.keys["train_network"]) == 3  # the random ones


# ---- more of the same -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "more"),
    [
        ("evaluation.seeds=5", {"train_network", "measure"}),
        ("student.train_last=true", {"relabel", "train_student", "measure"}),
        ("baselines=random,selection,herding,sre2l", {"select", "synthesize", "relabel", "train_network", "measure"}),
    ],
)
def test_what_only_adds_keeps_all_there_is(
    setting: str, more: set[str], base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    other = record(changed(base, places, setting))
    assert recorded.lost(other) == REPORT
    assert other.lost(recorded) == more | REPORT


def test_fewer_iterations_later_keep_the_first_curriculum(
    base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    other = record(changed(base, places, "synthesis.iteration_decay=0.5"))
    kept = recorded.keys["synthesize"] & other.keys["synthesize"]
    assert len(kept) == 1 < len(other.keys["synthesize"]) == len(recorded.keys["synthesize"])


def test_patches_are_read_where_images_begin_with_them(base: Recipe, places: dict[str, Path]) -> None:
    patches = changed(base, places, "synthesis.init=patches")
    first = record(patches)
    for setting in ("synthesis.patch_grid=4", "synthesis.patch_candidates=9"):
        assert "synthesize" in first.lost(record(changed(patches, places, setting)))


def test_statistics_of_the_pool_are_a_stage_that_reads_verdicts(base: Recipe, places: dict[str, Path]) -> None:
    pool = record(changed(base, places, "synthesis.bn_statistics=pool", "baselines=random,selection,herding,sre2l"))
    assert set(pool.keys) == ALL | {"statistics"} and len(pool.keys["statistics"]) == 3  # one a curriculum
    inputs = [set(json.loads(text)[2]) for text in pool.own["statistics"]]
    assert {"teacher", "data", "right"} in inputs and {"teacher", "data", "right", "wrong"} in inputs
    # All else that there is in the key is compute: how images are made of them does not count.
    other = changed(base, places, "synthesis.bn_statistics=pool", "synthesis.iterations=7", "seed=1", "baselines=")
    assert pool.own["statistics"] == record(other).own["statistics"]
    silent = record(changed(base, places, "synthesis.bn_statistics=pool", "synthesis.weight_bn=0", "baselines="))
    assert "statistics" not in silent.keys
    synthesized = [set(json.loads(text)[2]) for text in pool.own["synthesize"]]
    assert any("statistics" in names for names in synthesized)
    assert any("statistics" not in names for names in synthesized)  # SRe2L has no switch of ours


def test_growing_ipc_keeps_every_finished_curriculum(base: Recipe, places: dict[str, Path]) -> None:
    small = record(changed(base, places, "schedule.ipc=10", "baselines=selection"))
    grown = record(changed(base, places, "schedule.ipc=40", "baselines=selection"))
    # Only what reads the whole set: its labels for the evaluation, the set itself, the evaluation, the report.
    assert small.lost(grown) == {"relabel", "assemble", "train_network", "measure", "report"}


@pytest.mark.parametrize("policy", ["curriculum", "herding"])
def test_what_is_selected_for_a_block_follows_from_that_block(
    policy: str, base: Recipe, places: dict[str, Path]
) -> None:
    """The verdicts on its classes, features of its images, and its own originals of all curricula before."""
    made: dict[str, tuple[str, list[int], list[int]]] = {}
    read: list[tuple[list[int], list[int], dict[str, tuple[str, list[int], list[int]]]]] = []
    shards: list[tuple[list[int], list[int]]] = []

    def listed(store: Store, *, stage: str, config: Mapping[str, Any], inputs: Mapping[str, str], **rest: Any) -> Ref:
        ref = Recording().cached_stage(store, stage=stage, config=config, inputs=inputs, **rest)
        classes, slices = (list(config.get(name, ())) for name in ("classes", "slices"))
        if stage == "select":
            read.append((classes, slices, {name: made[digest] for name, digest in inputs.items() if digest in made}))
        if stage == "synthesize":
            shards.append((slices, made[inputs["selection"]][2]))
        made[ref.digest] = stage, classes, slices
        return ref

    recipe = changed(
        base, places, f"select.policy={policy}", "schedule.block_size=1", "schedule.slices_per_shard=5", "baselines="
    )
    data = DataRef(recipe.data, "a" * 64, "b" * 64, 3)
    run = Walk(StageContext(cast(Store, None), data, recipe.compute, recipe.seed, "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.call.cached_stage", listed)
        flow.pipeline(run, recipe)
    cuts = [[0, 5], [5, 10], [10, 20]]
    assert sorted((slices, classes) for classes, slices, _ in read) == [(c, [k, k + 1]) for c in cuts for k in range(3)]
    for classes, slices, inputs in read:
        assert all(theirs == classes for _, theirs, _ in inputs.values())
        before = [slices for name, (_, _, slices) in sorted(inputs.items()) if name.startswith("earlier")]
        assert before == cuts[: cuts.index(slices)]
        others = {name: stage for name, (stage, _, _) in inputs.items() if not name.startswith("earlier")}
        asked = {"teacher": "classify"} | ({"student": "classify"} if before else {})
        assert others == (asked if policy == "curriculum" else {"features": "features"})
    assert len(shards) == 3 * 4 and all(whole[0] <= own[0] and own[1] <= whole[1] for own, whole in shards)


def test_hard_labels_read_neither_soft_ones_nor_their_loss(base: Recipe, places: dict[str, Path]) -> None:
    plain = changed(base, places, "evaluation.labels=hard", "schedule.ipc=5")
    recorded = record(plain)
    assert "relabel" not in recorded.keys
    for setting in ("evaluation.temperature=4", "evaluation.hard_label_weight=0.5", "evaluation.loss=mse"):
        assert recorded == record(changed(plain, places, setting))
    assert not recorded.keys["train_network"] & record(changed(base, places, "schedule.ipc=5")).keys["train_network"]


@pytest.mark.parametrize("policy", ["herding", "kcenter"])
def test_selection_by_geometry_does_not_know_the_seed(policy: str, base: Recipe, places: dict[str, Path]) -> None:
    plain = changed(base, places, f"select.policy={policy}", "baselines=")
    assert "select" not in record(plain).own_lost(record(changed(plain, places, "seed=1")))


def test_without_the_adversarial_term_students_do_not_count(base: Recipe, places: dict[str, Path]) -> None:
    plain = changed(base, places, "synthesis.weight_adv=0", "baselines=")
    own = [json.loads(text) for text in record(plain).own["synthesize"]]
    assert own and all("student" not in names for _, _, names, _ in own)
    with_it = [json.loads(text) for text in record(base).own["synthesize"]]
    assert {config["curriculum"] for _, config, names, _ in with_it if "student" in names} == {2, 3}


@pytest.mark.parametrize(
    ("off", "unread"),
    [
        ("synthesis.weight_reg=0", ("synthesis.regularization=feature",)),
        ("synthesis.weight_bn=0", ("synthesis.first_bn_factor=2", "synthesis.bn_statistics=pool")),
        ("synthesis.weight_adv=0", ("synthesis.teacher_correct_only=false",)),
    ],
)
def test_ablations_share_images_that_a_term_had_no_part_in(
    off: str, unread: tuple[str, ...], base: Recipe, places: dict[str, Path]
) -> None:
    without = changed(base, places, off, "schedule.ipc=5", "baselines=")
    assert all(record(changed(without, places, setting)) == record(without) for setting in unread)


def test_a_student_that_starts_from_scratch_does_not_know_the_one_before(base: Recipe, places: dict[str, Path]) -> None:
    cold, warm = (
        [set(json.loads(text)[2]) for text in record(changed(base, places, *settings, "baselines=")).own[
            "train_student"
        ]]
        for settings in (("student.warm_start=false",), ())
    )  # fmt: skip
    assert not any("previous" in names for names in cold) and any("previous" in names for names in warm)


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_labels_that_lack_their_smallest_logits_depend_on_how_many_and_on_the_temperature(
    base: Recipe, places: dict[str, Path]
) -> None:
    pruned = changed(base, places, "relabel.storage=topk", "relabel.top=2")
    first = record(pruned)
    assert first.own_lost(record(changed(pruned, places, "relabel.top=1"))) == LABELS
    assert first.own_lost(record(changed(pruned, places, "evaluation.temperature=4"))) == LABELS | NETWORK
    assert first.own_lost(record(changed(pruned, places, "student.temperature=4"))) == LABELS | STUDENT


def test_labelled_epochs_are_shared_however_often_they_are_used(base: Recipe, places: dict[str, Path]) -> None:
    """Of 80 epochs, all or the first 40 are labelled; one task labels 20."""
    cut = changed(base, places, "relabel.epochs_per_shard=20", "student.training.epochs=80", "student.warm_start=false")
    once, twice = record(cut), record(changed(cut, places, "relabel.reuse=2"))
    # Sets that students chose are others, since the students are. The first set, and the random one, are not.
    own = twice.own["relabel"]
    assert own < once.own["relabel"] and len(own) == len(once.own["relabel"]) / 2


def test_where_no_labels_are_stored_training_reads_all_that_makes_them(
    base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    live = changed(base, places, "relabel.storage=none")
    first = record(live)
    assert "relabel" not in first.keys
    own = [json.loads(text) for stage in ("train_student", "train_network") for text in first.own[stage]]
    assert all("teacher" in names and not any(name.startswith("labels") for name in names) for *_, names, _ in own)
    assert all(config["labels"] == {"storage": "none", "version": 2} for _, config, *_ in own)
    assert recorded.own_lost(first) == REPLAYED
    for setting in ("relabel.crop_scale=0.5,1", "relabel.flip=false", "relabel.mix=mixup", "relabel.mix_alpha=0.5"):
        assert first.own_lost(record(changed(live, places, setting))) == STUDENT | NETWORK
    assert first.own_lost(record(changed(live, places, "relabel.reuse=2"))) == STUDENT | NETWORK
    assert first.own_lost(record(changed(live, places, "relabel.batchnorm=batch"))) == STUDENT | NETWORK
    for setting in ("relabel.epochs_per_shard=40", "relabel.top=2"):
        assert first.lost(record(changed(live, places, setting))) == NONE


# ---- several teachers -----------------------------------------------------------------------------------------------

OTHERS = 'other_teachers=[{"arch":"convnet1-w8"},{"seed":1}]'
PINNED = {
    "squeeze": "7190843f79fedebb",
    "preflight": "6cef165fe91ab464",
    "classify": "2ab8b86416bc2450",
    "select": "ba34d6eb8952019d",
    "synthesize": "e710a7a6af24ef04",
    "relabel": "a30783659aaaf069",
    "train_student": "6741e45f2818a90b",
    "assemble": "1c2ea50e98ad10f1",
    "measure": "740239f5109ada16",
    "keep": "6745349e22387b7f",
    "features": "2b314f629c0038b3",
    "train_network": "762fa7c6e5d0fab1",
    "report": "14e9d4b8d4c6fbec",
}
"""Of the keys of every stage of a plain run on data with made-up digests, the beginning of their sha256."""


def test_keys_of_a_run_with_one_teacher_are_what_they_were_before_there_could_be_several() -> None:
    """Whoever changes one of these on purpose has every store's outputs of that stage computed anew: say so."""
    recipe = apply_overrides(Recipe(name="plain"), ["data.channels=1", "data.image_size=8", *BASE[3:]])
    recording = Recording()
    data = DataRef(recipe.data, "a" * 64, "b" * 64, 10)
    run = Walk(StageContext(cast(Store, None), data, recipe.compute, recipe.seed, "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.call.cached_stage", recording.cached_stage)
        illustrate(run, recipe, flow.pipeline(run, recipe))
    found = {
        stage: hashlib.sha256("".join(sorted(keys)).encode()).hexdigest()[:16] for stage, keys in recording.keys.items()
    }
    assert found == PINNED


def test_other_teachers_are_added_and_the_first_stays(
    base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    several = record(changed(base, places, OTHERS))
    for stage in ("squeeze", "preflight"):
        assert recorded.keys[stage] < several.keys[stage] and len(several.keys[stage]) == 3
    # What the first alone is asked: its verdicts, its features, the originals of the first curriculum, real images.
    assert recorded.keys["features"] == several.keys["features"]
    assert recorded.keys["keep"] & several.keys["keep"] and recorded.keys["classify"] & several.keys["classify"]
    for stage in ("synthesize", "relabel", "train_student", "train_network"):
        assert not recorded.keys[stage] & several.keys[stage]
        assert len(recorded.keys[stage]) == len(several.keys[stage])
    one = record(changed(base, places, 'other_teachers=[{"arch":"convnet1-w8"}]'))
    swapped = record(changed(base, places, 'other_teachers=[{"seed":1},{"arch":"convnet1-w8"}]'))
    for stage in ("synthesize", "relabel"):
        assert not several.keys[stage] & (one.keys[stage] | swapped.keys[stage])


def test_a_teacher_with_a_seed_or_threads_of_its_own_is_the_one_of_a_run_with_these(
    base: Recipe, recorded: Recording, places: dict[str, Path]
) -> None:
    def squeezed(*settings: str) -> set[str]:
        return record(changed(base, places, *settings)).keys["squeeze"]

    assert squeezed("seed=1", "teacher.seed=0") == squeezed("teacher.seed=0") == recorded.keys["squeeze"]
    assert squeezed("teacher.seed=7") == squeezed("seed=7") != recorded.keys["squeeze"]
    assert squeezed("teacher.threads=2") == squeezed("compute.threads=2") != recorded.keys["squeeze"]
    assert squeezed("teacher.threads=1") == recorded.keys["squeeze"]
    assert squeezed('other_teachers=[{"seed":7}]') == recorded.keys["squeeze"] | squeezed("seed=7")


def test_titles_of_several_teachers_stages_differ(base: Recipe, places: dict[str, Path]) -> None:
    """Parts of a run are fetched by name, which is made of the title."""
    titles: list[str] = []

    def listed(store: Store, *, params: Mapping[str, str], stage: str, **asked: Any) -> Ref:
        ref = Recording().cached_stage(store, stage=stage, **asked)
        titles.append(f"{ref.key} {params['title']}")
        return ref

    recipe = changed(
        base, places, 'other_teachers=[{"seed":1},{"seed":2}]', "synthesis.bn_statistics=pool", "baselines=",
        "schedule.ipc=5",
    )  # fmt: skip
    data = DataRef(recipe.data, "a" * 64, "b" * 64, 3)
    run = Walk(StageContext(cast(Store, None), data, recipe.compute, recipe.seed, "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.call.cached_stage", listed)
        flow.pipeline(run, recipe)
    named = {title.partition(" ")[2] for title in set(titles)}
    assert len(named) == len(set(titles))
    assert {"squeeze convnet1-w4", "squeeze convnet1-w4, teacher 3", "preflight, teacher 2"} <= named
    assert {"statistics 1", "statistics 1, teacher 2", "statistics 1, teacher 3"} <= named


def test_statistics_of_the_pool_are_taken_for_each_teacher(base: Recipe, places: dict[str, Path]) -> None:
    pool = changed(base, places, "synthesis.bn_statistics=pool", "schedule.ipc=5", "baselines=")
    one, several = record(pool), record(changed(pool, places, OTHERS))
    assert one.keys["statistics"] < several.keys["statistics"] and len(several.keys["statistics"]) == 3


def test_trainings_read_other_teachers_where_these_answer_them(base: Recipe, places: dict[str, Path]) -> None:
    live = changed(base, places, "relabel.storage=none")
    one, several = record(live), record(changed(live, places, OTHERS))
    assert one.own_lost(several) == SYNTHESIZE | STUDENT | NETWORK
    hard = changed(live, places, "evaluation.labels=hard", "baselines=random", "schedule.ipc=5")
    assert "train_network" not in record(hard).own_lost(record(changed(hard, places, OTHERS)))


# ---- loaded teachers ------------------------------------------------------------------------------------------------

LOADED = {
    "teacher.arch": ("convnet1-w8", True),
    "teacher.class_names": ("a,b,c", True),
    "teacher.class_order": ("as_data", True),
    "teacher.mean": ("0.5,0.5,0.5", True),
    "teacher.std": ("0.5,0.5,0.5", True),
    "teacher.training.epochs": ("7", False),
    "teacher.training.optimizer": ("adamw", False),
    "teacher.crop": ("none", False),
    "teacher.flip": ("false", False),
    "teacher.minimum_margin": ("0.5", False),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_loaded_teacher_reads_other_fields(name: str, base: Recipe, places: dict[str, Path]) -> None:
    value, counts = LOADED[name]
    file = changed(base, places, "teacher.source=file", "teacher.weights=<here>/teacher.safetensors")
    assert ("squeeze" in record(file).lost(record(changed(file, places, f"{name}={value}")))) == counts


@pytest.mark.parametrize("source", ["torchvision", "mlflow"])
def test_weights_that_are_named_count_by_name(source: str, base: Recipe, places: dict[str, Path]) -> None:
    one, other = (
        record(changed(base, places, f"teacher.source={source}", f"teacher.weights={name}")) for name in ("a1", "b2")
    )
    assert not one.keys["squeeze"] & other.keys["squeeze"]


def test_a_weights_file_counts_by_content(base: Recipe, places: dict[str, Path]) -> None:
    file = changed(base, places, "teacher.source=file", "teacher.weights=<here>/teacher.safetensors")
    first = record(file)
    assert first.lost(record(changed(file, places, "teacher.weights=<there>/teacher.safetensors"))) == set()
    assert "squeeze" in first.lost(record(changed(file, places, "teacher.weights=<grey>/teacher.safetensors")))


# ---- laboratories ---------------------------------------------------------------------------------------------------


def stored(name: str) -> Ref:
    return Ref("stage", name * 64, name * 32, name * 64, 1)


def asked(task: Any, *arguments: Any, train: str = "a", test: str = "b", seed: int = 0) -> str:
    """The key that a task looks up, alone."""
    data = DataRef(DataConfig(), train * 64, test * 64, 10)
    context = StageContext(cast(Store, None), data, ComputeConfig(), seed, "run", ledger=Ledger.of(()))
    key: str = task.fn(context, *arguments).data.key
    return key


A, B, C = (stored(name) for name in "cde")
EVALUATION, RELABEL = EvaluationConfig(), RelabelConfig()
LONGER = EVALUATION.model_copy(update={"training": EVALUATION.training.model_copy(update={"epochs": 7})})
WARMER = EVALUATION.model_copy(update={"temperature": 4.0})
MIXED, BATCH = (RELABEL.model_copy(update=change) for change in ({"mix": "none"}, {"batchnorm": "batch"}))
LEARN = (A, (B,), "set", "convnet1", 0, 1, (2, 3), EVALUATION, RELABEL)


def but(arguments: tuple[Any, ...], place: int, value: object) -> tuple[Any, ...]:
    return (*arguments[:place], value, *arguments[place + 1 :])


@pytest.mark.parametrize(
    ("task", "arguments", "others", "elsewhere", "for_logs"),
    [
        pytest.param(
            laboratory.measure_corrupted, ((A, B), "fog", 1), [(0, (A,)), (0, (B, A)), (1, "snow"), (2, 2)],
            [{"test": "f"}, {"seed": 1}], [], id="measure_corrupted",
        ),
        pytest.param(
            laboratory.learn_classes, LEARN,
            [(0, C), (1, (C,)), (3, "convnet2"), (4, 1), (6, (2, 4)), (7, LONGER), (7, WARMER), (8, MIXED), (8, BATCH),
             (9, (C,))],
            [{"seed": 1}], [(2, "other"), (5, 2), (8, RELABEL.model_copy(update={"storage": "int8"}))],
            id="learn_classes",
        ),
        pytest.param(
            laboratory.measure_classes, (A, (2, 3), "name"), [(0, B), (1, (2, 4))], [{"test": "f"}], [(2, "other")],
            id="measure_classes",
        ),
        pytest.param(
            laboratory.coverage, (A, ("one", "two"), ((B,), (C,)), 3, 5),
            [(0, B), (1, ("one", "2")), (1, ("two", "one")), (2, ((B,), (B,))), (2, ((C,), (B,))), (3, 4), (4, 6)],
            [{"train": "f"}, {"seed": 1}], [], id="coverage",
        ),
        pytest.param(
            measure_set, (A, (B, C)), [(0, B), (1, (B,)), (1, (C, B))], [], [],
            id="measure_set",
        ),
    ],
)  # fmt: skip
def test_the_key_of_a_measurement_has_all_that_it_measures(
    task: Any,
    arguments: tuple[Any, ...],
    others: list[tuple[int, Any]],
    elsewhere: list[dict[str, Any]],
    for_logs: list[tuple[int, Any]],
) -> None:
    own = asked(task, *arguments)
    keys = [own, *(asked(task, *but(arguments, *other)) for other in others)]
    keys += [asked(task, *arguments, **other) for other in elsewhere]
    assert len(set(keys)) == 1 + len(others) + len(elsewhere)
    assert {asked(task, *but(arguments, *other)) for other in for_logs} <= {own}


def test_other_corruptions_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    before = asked(laboratory.measure_corrupted, (A,), "fog", 1)
    monkeypatch.setattr(laboratory, "CORRUPTIONS_VERSION", 10**6)
    assert asked(laboratory.measure_corrupted, (A,), "fog", 1) != before
