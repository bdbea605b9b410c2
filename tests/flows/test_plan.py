"""`plan`: its counts against closed forms, without data, quickly."""

from __future__ import annotations

import io
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from cudd_core.errors import ConfigError, ModelError
from cudd_core.models.registry import build_network
from cudd_core.prediction import PREDICTED_TOGETHER
from cudd_core.schedule import curriculum_boundaries, cut
from flows.catalogue import DATASETS, recipe_names
from flows.distill import pipeline
from flows.flops import forward_flops
from flows.plan import Plan, StagePlan, _notes, plan, students
from flows.plan_tables import render
from flows.rates import DEVICES, Device
from flows.recipes import apply_overrides, get_recipe
from flows.summary import illustrate
from flows.walk import Walk
from tasks.context import DataRef, StageContext
from tasks.ledger import Ledger
from tasks.store import Store


def stages(result: Plan) -> dict[str, int]:
    return {stage.name: stage.tasks for stage in result.stages}


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("digits-mtt-ipc10", ()),
        ("digits", ()),
        ("digits", ("baselines=random,selection,herding,kcenter,sre2l,cda",)),
        ("digits", ("evaluation.labels=hard",)),
        ("digits", ("relabel.storage=none",)),
        ("digits", ("student.train_last=true",)),
        ("digits", ("schedule.block_size=3",)),
        ("digits", ("synthesis.enabled=false",)),
        ("digits", ("select.policy=herding",)),
        ("digits", ("select.policy=correct", "synthesis.weight_adv=0")),
        ("digits", ("evaluation.archs=convnet3,convnet2-w8", "evaluation.seeds=2")),
        ("digits", ("other_teachers=[{seed: 1}]", "synthesis.bn_statistics=pool")),
    ],
)
def test_tasks_are_those_that_the_flow_submits(recipe: str, settings: tuple[str, ...]) -> None:
    chosen = apply_overrides(get_recipe(recipe), settings)
    data = DataRef(chosen.data, "a" * 64, "b" * 64, 10)
    walk = Walk(StageContext(cast(Store, None), data, chosen.compute, chosen.seed, "run", ledger=Ledger.of(())))
    illustrate(walk, chosen, pipeline(walk, chosen))
    assert stages(plan(chosen)) == Counter(part.stage for part in walk.parts)


def text_of(result: Plan) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(render(result))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_forward_flops_are_those_of_the_layers() -> None:
    convolutions = 2 * 9 * (1 * 8 * 16 * 16 + 8 * 8 * 8 * 8 + 8 * 8 * 4 * 4)
    assert forward_flops("convnet3-w8", 10, 1, 16) == convolutions + 2 * 8 * 2 * 2 * 10


def test_forward_flops_of_resnet18_are_the_known_ones() -> None:
    assert forward_flops("resnet18", 1000, 3, 224) == pytest.approx(3.63e9, rel=0.01)


@pytest.mark.parametrize("arch", ["convnet3", "resnet18", "resnet50", "torchvision/resnet18", "torchvision/vit_b_32"])
def test_forward_flops_are_those_that_torch_counts(arch: str) -> None:
    network = build_network(arch, 7, 3, 64, seed=0).eval().to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.empty(1, 3, 64, 64, device="meta"))
    assert forward_flops(arch, 7, 3, 64) == counter.get_total_flops()


def test_data_of_one_s_own_is_counted_where_it_lies(tmp_path: Path) -> None:
    for split, images in (("train", 3), ("test", 2)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(images):
                Image.new("RGB", (32, 32)).save(tmp_path / split / name / f"{number}.png")
    recipe = apply_overrides(get_recipe("cifar10-convnet-ipc10"), ["dataset=mine", "schedule.ipc=2"])
    own = plan(apply_overrides(recipe, ["data.source=image_folder", f"data.root={tmp_path}"]))
    given = plan(recipe, 2, 6)
    assert (own.num_classes, own.num_train) == (given.num_classes, given.num_train) == (2, 6)


def test_digits() -> None:
    recipe = get_recipe("digits")
    result = plan(recipe)
    images, training = 10 * recipe.schedule.ipc, recipe.evaluation.training
    assert result.boundaries == (5, 10)
    assert result.images == images
    assert result.image_bytes == images * 16 * 16
    assert (result.labels.storage, result.labels.of_set) == ("full", training.epochs * images * 10 * 2)
    # The sets of the run, of its random and of its selected images, and the first curriculum's for its student.
    assert result.labels.in_all == 3 * result.labels.of_set + recipe.student.training.epochs * (images // 2) * 10 * 2
    shards = -(-training.epochs // recipe.relabel.epochs_per_shard)
    each, whole = (len(cut(range(n), recipe.schedule.slices_per_shard)) for n in (5, 10))
    student_shards = -(-recipe.student.training.epochs // recipe.relabel.epochs_per_shard)
    assert stages(result) == {
        "squeeze": 1,
        "preflight": 1,
        "classify": 2,  # teacher, first student
        "select": 3,  # two curricula, random
        "synthesize": 2 * each,  # two curricula
        "keep": 2 * each + whole,  # the selection likewise, random images at once
        "relabel": student_shards + 3 * shards,
        "train_student": 1,
        "measure": 1 + 9,
        "assemble": 1,
        "train_network": 9,
        "report": 1,
    }


def test_flops_follow_from_the_configuration() -> None:
    recipe = get_recipe("cifar100-ipc10")
    forward = forward_flops("resnet18", 100, 3, 32)
    result = plan(recipe)
    by_name = {stage.name: stage.flops for stage in result.stages}
    assert by_name["classify"] == 2 * 50_000 * forward, "by the teacher and by the first student"
    assert by_name["preflight"] == 10_000 * forward
    assert by_name["measure"] == stages(result)["measure"] * 10_000 * forward
    # Two curricula of 500 images: teacher alone, then teacher and student; forward, and backward to the pixels.
    assert by_name["synthesize"] == 500 * 1000 * 2 * forward + 500 * 1000 * 4 * forward
    assert by_name["squeeze"] == 200 * 50_000 * 3 * forward
    without = apply_overrides(recipe, ["synthesis.weight_adv=0"])
    assert {s.name: s.flops for s in plan(without).stages}["synthesize"] == 1000 * 1000 * 2 * forward


def test_a_pretrained_teacher_costs_nothing_to_train() -> None:
    assert {s.name: s.flops for s in plan(get_recipe("imagenet1k-ipc10")).stages}["squeeze"] == 0


def test_sre2l_adds_a_synthesis_without_curricula() -> None:
    recipe = get_recipe("digits")
    with_it, without = (stages(plan(apply_overrides(recipe, [f"baselines={name}"]))) for name in ("sre2l", ""))
    assert with_it["synthesize"] - without["synthesize"] == len(cut(range(10), recipe.schedule.slices_per_shard))
    assert with_it["train_student"] == without["train_student"]
    assert with_it["train_network"] == 2 * without["train_network"]


def test_trajectory_matching_is_one_task_a_curriculum_and_one_an_expert() -> None:
    recipe = apply_overrides(get_recipe("digits-mtt-ipc10"), ["baselines="])
    result = plan(recipe)
    assert stages(result)["synthesize"] == 2 and stages(result)["train_expert"] == 4
    mtt, forward = recipe.synthesis.mtt, forward_flops("convnet3-w32-in", 10, 1, 16)
    by_name = {stage.name: stage.flops for stage in result.stages}
    assert by_name["train_expert"] == 4 * mtt.expert_epochs * 1_442 * 3 * forward
    assert by_name["synthesize"] == recipe.synthesis.iterations * mtt.steps * (50 + 100) * 9 * forward
    few = plan(apply_overrides(recipe, ["synthesis.mtt.batch_size=60"])).stages
    seen = recipe.synthesis.iterations * mtt.steps * (50 + 60)
    assert {stage.name: stage.flops for stage in few}["synthesize"] == seen * 9 * forward, "of the first 50, all"
    steps = {stage.name: stage.steps for stage in result.stages}
    assert steps["train_expert"] == 4 * mtt.expert_epochs * (1_442 // mtt.expert_batch_size)
    assert steps["synthesize"] == 2 * recipe.synthesis.iterations * mtt.steps * 3, "forward, and back through both"
    assert "one synthesis task a curriculum" in text_of(result).replace("\n", " ")


@pytest.mark.parametrize("name", recipe_names())
def test_every_named_recipe_is_planned_without_data(name: str) -> None:
    recipe = get_recipe(name)
    result = plan(recipe)
    assert result.boundaries == curriculum_boundaries(recipe.schedule)
    assert result.hours > 0
    assert name in text_of(result)


def test_the_largest_recipe_is_planned() -> None:
    result = plan(get_recipe("imagenet21k-ipc20"))
    assert (result.num_classes, result.blocks, result.images) == (10_450, 105, 209_000)
    assert "TB" in text_of(result)


def test_decoded_images_are_planned_where_they_are_kept() -> None:
    recipe = get_recipe("imagenet1k-ipc10")
    result = plan(recipe)
    assert result.decoded_bytes == (1_281_167 + 50_000) * 3 * 224 * 224
    assert "decoded images" in text_of(result) and "200 GB" in text_of(result)
    assert plan(apply_overrides(recipe, ["data.limit_per_class=50"])).decoded_bytes == 100_000 * 3 * 224 * 224
    assert plan(apply_overrides(recipe, ["data.cache=false"])).decoded_bytes == 0
    assert plan(get_recipe("digits")).decoded_bytes == 0


def test_every_form_of_labels_is_planned() -> None:
    recipe = apply_overrides(get_recipe("digits"), ["relabel.reuse=4", "relabel.storage=int8", "relabel.top=3"])
    result = plan(recipe)
    images, epochs = 10 * recipe.schedule.ipc, recipe.evaluation.training.epochs // 4
    sizes = {form.storage: form.of_set for form in result.label_forms}
    per_batch = epochs * 4 * 7  # low and high of the batches of 16, the last of 4
    assert sizes == {
        "full": epochs * images * 20,
        "int8": epochs * images * 10 + per_batch,
        "topk": epochs * images * (4 * 2 + 3),
        "topk-int8": epochs * images * (4 + 3) + per_batch,
        "none": 0,
    }
    assert result.labels == next(form for form in result.label_forms if form.storage == "int8")
    assert result.full_labels.of_set == 4 * sizes["full"]
    assert "every labelled epoch used 4 times" in text_of(result)
    with pytest.raises(ConfigError, match=r"relabel\.top = 11 .* 10 classes"):
        plan(apply_overrides(recipe, ["relabel.storage=topk", "relabel.top=11"]))


def test_a_task_with_much_to_label_is_told_of_and_holds_at_most_all_labels() -> None:
    def told(epochs: int, of_shard: int, epoch_bytes: int = 10**8) -> list[str]:
        settings = [f"evaluation.training.epochs={epochs}", f"relabel.epochs_per_shard={of_shard}"]
        notes = _notes(apply_overrides(get_recipe("digits"), settings), epochs * epoch_bytes)
        return [note for note in notes if note.startswith("One relabel task")]

    for epochs, held in ((300, "10 GB"), (100, "10 GB"), (90, "9 GB")):
        lower = "relabel.epochs_per_shard = 100 can be lowered"
        assert told(epochs, 100) == [f"One relabel task holds {held} of labels; {lower}."]
    assert told(75, 100) == told(300, 75) == []
    assert "epochs_per_shard = 2 can be lowered" in told(300, 2, 10**10)[0]
    (note,) = told(300, 1, 10**10)
    assert "epochs_per_shard" not in note, "it is at its least"


def test_labels_used_again_cost_fewer_passes_and_unstored_ones_a_pass_in_each_training() -> None:
    recipe = get_recipe("digits")

    def flops(*settings: str) -> dict[str, float]:
        return {stage.name: stage.flops for stage in plan(apply_overrides(recipe, settings)).stages}

    full, reused, none = flops(), flops("relabel.reuse=4"), flops("relabel.storage=none")
    assert reused["relabel"] == full["relabel"] / 4
    assert "relabel" not in none
    # The evaluated networks are of the teacher's architecture: forward, backward twice as much, and the teacher's pass.
    forward = forward_flops("convnet3-w32", 10, 1, 16)
    seen = 9 * recipe.evaluation.training.epochs * 10 * recipe.schedule.ipc
    # Three sets for networks of one architecture, three each; and half of the first for the student.
    assert full["relabel"] == (seen / 3 + recipe.student.training.epochs * 5 * recipe.schedule.ipc) * forward
    assert none["train_network"] - full["train_network"] == seen * forward
    assert none["train_student"] == full["train_student"] * 4 / 3


def test_a_faster_device_takes_less_time_for_the_same_work() -> None:
    slow, fast = (plan(get_recipe("imagenet1k-ipc10"), device=name) for name in ("rtx3090", "h100"))
    assert slow.flops == fast.flops
    assert slow.hours > fast.hours
    assert DEVICES["h100"].title in " ".join(text_of(fast).split())


def test_hours_are_called_what_they_are() -> None:
    result = plan(get_recipe("digits"))
    unmeasured = replace(result, device=replace(result.device, error=None))
    measured = replace(result, device=replace(result.device, error=0.21))
    assert "order of magnitude" in text_of(unmeasured)
    assert "up to 21%" in " ".join(text_of(measured).split())


def test_time_says_that_it_counts_no_lanes() -> None:
    def noted(*settings: str) -> bool:
        return any(
            "compute.lanes" in note for note in plan(apply_overrides(get_recipe("cifar10-ipc10"), settings)).notes
        )

    assert noted() and not noted("compute.lanes=1") and not noted("compute.device=cpu", "compute.amp=off")


def test_time_says_that_it_counts_no_threads_of_the_teacher() -> None:
    def noted(*settings: str) -> bool:
        return any("teacher.threads" in note for note in plan(apply_overrides(get_recipe("digits"), settings)).notes)

    assert noted("teacher.threads=2") and not noted() and not noted("teacher.threads=2", "compute.threads=2")


def test_a_note_is_given_where_it_is_true_and_nowhere_else() -> None:
    def noted(words: str, *settings: str, name: str = "digits", label_bytes: int = 0) -> bool:
        return any(words in note for note in _notes(apply_overrides(get_recipe(name), settings), label_bytes))

    for words, settings in (
        ("compute.data_parallel = 2", ["compute.data_parallel=2"]),
        ("teacher.threads", ["teacher.threads=2"]),
    ):
        assert noted(words, *settings) and not noted(words.split(" =")[0])
    assert not noted("teacher.threads", "teacher.threads=2", name="cifar10-ipc10"), "a GPU's time needs no threads"
    assert noted("Trajectory matching", name="digits-mtt-ipc10") and not noted("Trajectory matching")
    assert noted("relabel.reuse", label_bytes=101 * 10**9) and not noted("relabel.reuse", label_bytes=99 * 10**9)


def test_the_memory_of_the_hungriest_stage_is_stated() -> None:
    result = plan(get_recipe("cifar10-convnet-ipc10"))
    assert set(result.memory) == {"squeeze", "classify", "synthesize", "relabel", "train_student", "train_network"}
    stage = max(result.memory, key=lambda name: result.memory[name])
    said = text_of(result)
    assert f"in {stage}, 2 tasks at once, ± 30%" in said
    assert ", 3 tasks at once, ± 30%" in text_of(plan(get_recipe("cifar10-ipc10")))
    more = plan(apply_overrides(get_recipe("cifar10-convnet-ipc10"), ["synthesis.batch_size=1000"]))
    assert more.memory["synthesize"] > 5 * result.memory["synthesize"]


def test_the_memory_of_synthetic_sets_beside_a_gpu_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A baseline's set in training, the finished one, and a shard of it: 100 of 10,450 classes, 1 image of 20 each.

    Besides, the labels of two epochs: of one that is labelled, and of one that is being stored.
    """
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    result = plan(get_recipe("imagenet21k-ipc20"))
    assert result.image_bytes == 10_450 * 20 * 3 * 224**2
    labels = 10_450 * 20 * 10_450 * 2
    assert result.host_memory == 2 * result.image_bytes + 100 * 3 * 224**2 + 2 * labels
    assert "71.7 GB of memory for synthetic sets and labels" in text_of(result)
    assert "beside the GPU" not in text_of(plan(get_recipe("cifar10-convnet-ipc10")))


def test_data_of_unknown_size_asks_for_it() -> None:
    recipe = apply_overrides(get_recipe("digits"), ["dataset=mine"])
    with pytest.raises(ConfigError, match=r"'mine'.*--classes"):
        plan(recipe)
    assert plan(recipe, num_classes=4, num_train=400).images == 40


def test_more_images_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.ipc = 200.*at most 144"):
        plan(apply_overrides(get_recipe("digits"), ["schedule.ipc=200"]))


def test_an_unknown_device_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'tpu'.*h100"):
        plan(get_recipe("digits"), device="tpu")


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ModelError, match="convnet9"):
        plan(apply_overrides(get_recipe("digits"), ["teacher.arch=convnet9"]))


def test_nothing_slow_is_imported_to_plan_a_run_of_our_own_networks() -> None:
    code = """
import sys
from cudd_core.compute.runtime import ComputeConfig, Runtime
from flows.plan import plan
from flows.recipes import get_recipe

Runtime(ComputeConfig())
for name in ("digits", "cifar100-ipc10"):
    plan(get_recipe(name))
print(*{"torch._dynamo", "torchvision", "timm", "sklearn", "matplotlib", "mlflow", "prefect"} & set(sys.modules))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == []


def test_every_teacher_of_several_is_counted() -> None:
    base = apply_overrides(get_recipe("digits"), ["baselines=", "synthesis.bn_statistics=pool"])
    one, two = plan(base), plan(apply_overrides(base, ["other_teachers=[{arch: convnet3-w64}]"]))
    more = {"squeeze": 2, "preflight": 2, "statistics": 4}
    assert stages(two) == stages(one) | more
    first, other = (forward_flops(arch, 10, 1, 16) for arch in ("convnet3-w32", "convnet3-w64"))
    flops = [{stage.name: stage.flops for stage in each.stages} for each in (one, two)]
    for name in ("squeeze", "preflight", "relabel", "statistics"):
        assert flops[1][name] == pytest.approx(flops[0][name] * (first + other) / first)
    # The first curriculum goes through the teachers, the second through them and the student.
    assert flops[1]["synthesize"] == pytest.approx(flops[0]["synthesize"] * (2 * (first + other) + first) / (3 * first))
    for name in ("classify", "train_student", "train_network", "measure"):
        assert flops[1][name] == flops[0][name]
    live = [
        plan(apply_overrides(base, ["relabel.storage=none", *more])) for more in ((), ("other_teachers=[{seed: 1}]",))
    ]
    trained = [{stage.name: stage.flops for stage in each.stages}["train_network"] for each in live]
    assert trained[1] == pytest.approx(trained[0] * 5 / 4)  # three passes of the network, and one of each teacher


def test_switches_of_synthesis_are_counted() -> None:
    base = get_recipe("digits")
    plain = plan(base)
    pool = plan(apply_overrides(base, ["synthesis.bn_statistics=pool"]))
    assert stages(pool) == stages(plain) | {"statistics": 2}  # one a curriculum
    assert pool.flops > plain.flops

    def synthesis(*overrides: str) -> float:
        return next(each.flops for each in plan(apply_overrides(base, overrides)).stages if each.name == "synthesize")

    # Without L_adv both curricula cost the same, so the second at half the iterations saves a quarter of all.
    alone = "synthesis.weight_adv=0"
    assert synthesis(alone, "synthesis.iteration_decay=0.5") == pytest.approx(0.75 * synthesis(alone))
    forward, images = forward_flops("convnet3-w32", 10, 1, 16), 10 * base.schedule.ipc
    # The teacher sees the originals once more in every step, and every candidate for a patch once.
    by_features = synthesis("synthesis.regularization=feature") - synthesis()
    assert by_features == images * base.synthesis.iterations * forward
    assert synthesis("synthesis.regularization=feature", "synthesis.weight_reg=0") == synthesis()
    patches = ("synthesis.init=patches", "synthesis.patch_grid=4", "synthesis.patch_candidates=3")
    assert synthesis(*patches) - synthesis() == images * 16 * 3 * forward
    asked, unasked = (
        next(each.steps for each in result.stages if each.name == "synthesize")
        for result in (plan(apply_overrides(base, patches)), plain)
    )
    assert asked - unasked == pytest.approx(images * 16 * 3 / PREDICTED_TOGETHER)


def test_hours_are_those_of_the_work_divided_among_the_tasks_of_the_device() -> None:
    """An hour of FLOPs for the whole device; an hour of steps for one of its tasks."""
    device = Device("made up", flops=1e12, step=0.5, tasks=4)
    hours = {tasks: StagePlan("s", tasks, steps=7200, flops=3.6e15).hours(device) for tasks in (0, 1, 2, 4, 9)}
    assert hours == {0: 5, 1: 5, 2: 2.5, 4: 1.25, 9: 1.25}


def test_students_that_go_on_from_the_one_before_are_planned_with_their_own_lengths() -> None:
    warm = ["student.warm_start=true", "student.warm_epoch_factor=0.5", "schedule.step=3"]
    recipe = apply_overrides(get_recipe("digits"), warm)
    epochs, (*taught, last) = recipe.student.training.epochs, curriculum_boundaries(recipe.schedule)
    planned = [(images, training.epochs) for images, training in students(recipe, 10)]
    assert planned == [(10 * ipc, epochs if number == 0 else epochs // 2) for number, ipc in enumerate(taught)]
    too = students(apply_overrides(recipe, ["student.train_last=true"]), 10)
    assert [(images, training.epochs) for images, training in too] == [*planned, (10 * last, epochs // 2)]


def test_steps_follow_from_batches() -> None:
    recipe = apply_overrides(get_recipe("digits"), ["synthesis.batch_size=4", "relabel.reuse=2"])
    steps = {stage.name: stage.steps for stage in plan(recipe).stages}
    # Of ten classes, four, four and two; of 50 and 100 images, sixteen, the last two with the rest.
    assert steps["synthesize"] == 3 * recipe.schedule.ipc * recipe.synthesis.iterations
    each, student = recipe.evaluation.training.epochs, recipe.student.training.epochs
    assert steps["train_network"] == 9 * each * 7 and steps["train_student"] == student * 4
    assert steps["relabel"] == (3 * each * 7 + student * 4) / 2
    # A teacher leaves out what is no whole batch; answers are asked for many images together.
    _, train, test = DATASETS["digits"]
    teacher = recipe.teacher.training
    assert steps["squeeze"] == teacher.epochs * (train // teacher.batch_size) and train % teacher.batch_size
    assert steps["classify"] == 2 * train / PREDICTED_TOGETHER
    assert steps["preflight"] == test / PREDICTED_TOGETHER == pytest.approx(steps["measure"] / 10)
    asked = apply_overrides(get_recipe("digits"), ["select.policy=herding", "synthesis.bn_statistics=pool"])
    steps = {stage.name: stage.steps for stage in plan(asked).stages}
    assert steps["features"] == steps["statistics"] == 2 * train / PREDICTED_TOGETHER, "in each curriculum"
