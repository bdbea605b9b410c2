"""What is refused before anything is computed or stored. Values out of range: test_recipes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cudd_core.data import open_split
from cudd_core.errors import ConfigError, DataError, ModelError, ResourceError, UserError
from flows.checks import check_data, check_recipe
from flows.distill import pipeline
from flows.plan import plan
from flows.prepare import opened_run
from flows.recipes import apply_overrides, get_recipe

pytestmark = pytest.mark.usefixtures("no_store_variables")

SMALL = (
    *("data.image_size=8", "teacher.arch=convnet1-w4", "schedule.ipc=2", "schedule.step=1"),
    "synthesis.jitter=1",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that nothing has been written to yet."""
    monkeypatch.setenv("CUDD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def refused(error: type[UserError], message: str, *overrides: str, force: frozenset[str] = frozenset()) -> None:
    recipe = apply_overrides(get_recipe("digits"), [*SMALL, *overrides])
    with pytest.raises(error, match=message), opened_run(recipe, partial(pipeline, recipe=recipe), force):
        pytest.fail("the run began")


@pytest.mark.parametrize(
    ("error", "message", "overrides"),
    [
        (ConfigError, r"objective = cudd does not read mtt", ("synthesis.mtt.steps=3",)),
        (ConfigError, r"objective = mtt does not read .*jitter", ("synthesis.objective=mtt",)),
    ],
)
def test_fields_of_another_objective(error: type[UserError], message: str, overrides: tuple[str, ...]) -> None:
    with pytest.raises(error, match=message):
        apply_overrides(get_recipe("digits"), overrides)


def test_what_is_said_of_fields_of_another_objective_can_be_typed() -> None:
    digits = get_recipe("digits")
    with pytest.raises(ConfigError, match="does not read") as caught:
        apply_overrides(digits, ["synthesis.objective=mtt"])
    settings = str(caught.value).partition("sets them to: ")[2].rstrip(".").split()
    assert settings == ["synthesis.crop_scale=0.08,1.0", "synthesis.flip=true", "synthesis.jitter=4"]
    assert apply_overrides(digits, ["synthesis.objective=mtt", *settings]).synthesis.objective == "mtt"
    with pytest.raises(ConfigError, match=r"sets them to: synthesis\.mtt\.steps=30 synthesis\.mtt\.span=2\.$"):
        apply_overrides(digits, ["synthesis.mtt.steps=3", "synthesis.mtt.span=1"])


@pytest.mark.parametrize(
    ("error", "message", "override"),
    [
        (ModelError, r"synthesis\.mtt\.arch = resnet18.*ConvNets alone", "synthesis.mtt.arch=resnet18"),
        (ModelError, r"convnet5-in halves its input 5 times", "synthesis.mtt.arch=convnet5-in"),
    ],
)
def test_trajectories_of_networks_that_cannot_be_followed(
    error: type[UserError], message: str, override: str, home: Path
) -> None:
    recipe = apply_overrides(get_recipe("digits-mtt-ipc10"), [override])
    with pytest.raises(error, match=message), opened_run(recipe, partial(pipeline, recipe=recipe)):
        pytest.fail("the run began")


@pytest.mark.parametrize("name", ["sre2l", "cda"])
def test_baselines_beside_an_objective_that_they_are_no_part_of(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"baselines: {name}: Eq\. 6 without.*synthesis\.objective=cudd"):
        apply_overrides(get_recipe("digits-mtt-ipc10"), [f"baselines={name}"])


def test_a_baseline_that_nothing_is_left_of() -> None:
    recipe = apply_overrides(
        get_recipe("digits"), ["baselines=sre2l", "synthesis.weight_ce=0", "synthesis.weight_bn=0"]
    )
    for refuses in (plan, check_data):
        with pytest.raises(ConfigError, match=r"sre2l cannot be made of this recipe: weight_ce, weight_bn"):
            refuses(recipe)


def png(seed: int, channels: int = 3) -> bytes:
    shape = (8, 8, 3) if channels == 3 else (8, 8)
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_folder(root: Path, split: str, classes: str = "abc", channels: int = 3, count: int = 4) -> None:
    for label, name in enumerate(classes):
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(count):
            (folder / f"{number}.png").write_bytes(png(10 * label + number, channels))


def write_parquet(root: Path, split: str, names: list[str], count: int = 4) -> None:
    labels = [label for label in range(len(names)) for _ in range(count)]
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    images = pa.array([{"bytes": png(number), "path": None} for number in range(len(labels))], struct)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"image": images, "label": labels})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    root.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, root / f"{split}-00000-of-00001.parquet")


def folder_of(root: Path, *more: str) -> tuple[str, ...]:
    return ("data.source=image_folder", f"data.root={root}", "data.channels=3", *more)


# ---- the recipe -----------------------------------------------------------------------------------------------------


def test_unknown_stage_to_force(home: Path) -> None:
    refused(ConfigError, r"--force-stages: there is no 'distill'\. Known: squeeze", force=frozenset({"distill"}))
    assert not home.exists()


@pytest.mark.parametrize(
    ("slots", "message", "override"),
    [
        ("2", r"data_parallel = 3 processes need 1 core each.*CUDD_SLOTS = 2 has room for 2", ""),
        ("", r"data_parallel = 64 processes need 256 cores each", "compute.threads=256"),
        ("9", r"data_parallel = 3: student\.training\.batch_size = 2 leaves", "student.training.batch_size=2"),
        ("9", r"data_parallel = 3: teacher\.training\.batch_size = 2 leaves", "teacher.training.batch_size=2"),
        (
            "9",
            r"data_parallel = 3: other_teachers\.0\.training\.batch_size = 2 leaves",
            "other_teachers=[{seed: 1, training: {batch_size: 2}}]",
        ),
    ],
)
def test_more_processes_than_there_is_room_or_work_for(
    slots: str, message: str, override: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDD_SLOTS", slots)
    count = 3 if slots else 64
    sizes = [f"{part}.training.batch_size=64" for part in ("teacher", "student", "evaluation")]
    refused((ConfigError if "leaves" in message else ResourceError), message, f"compute.data_parallel={count}", *sizes,
            *filter(None, [override]))  # fmt: skip
    assert not home.exists()


def test_as_many_processes_as_there_is_room_and_work_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher that is loaded has no batches to share."""
    monkeypatch.setenv("CUDD_SLOTS", "2")
    sizes = [f"{part}.training.batch_size=2" for part in ("teacher", "student", "evaluation")]
    loaded = ("teacher.source=file", "teacher.weights=teacher.safetensors", "teacher.training.batch_size=2")
    for settings in (sizes, [*sizes[1:], *loaded]):
        check_recipe(apply_overrides(get_recipe("digits"), ["compute.data_parallel=2", *settings]), frozenset())
    monkeypatch.setenv("CUDD_SLOTS", "4")
    more = ["compute.data_parallel=4", "student.training.batch_size=4", "evaluation.training.batch_size=4"]
    check_recipe(apply_overrides(get_recipe("digits"), [*more, *loaded]), frozenset())


def test_slots_that_are_no_number(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDD_SLOTS", "many")
    refused(ConfigError, "CUDD_SLOTS = 'many' must be a whole number")
    assert not home.exists()


def test_processes_that_share_a_training_need_the_local_runner(home: Path) -> None:
    recipe = apply_overrides(get_recipe("digits"), ["compute.data_parallel=2"])
    with pytest.raises(ConfigError, match=r"compute\.data_parallel = 2: .*--runner ray"):
        check_recipe(recipe, frozenset(), "ray")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none(home: Path) -> None:
    refused(ResourceError, r"compute\.device = cuda.*no usable CUDA device", "compute.device=cuda")
    assert not home.exists()


@pytest.mark.parametrize("field", ["teacher.arch", "student.arch", "evaluation.archs"])
def test_image_too_small_for_a_network(field: str, home: Path) -> None:
    refused(ModelError, r"convnet4 halves its input 4 times; 8 px images.*data\.image_size", f"{field}=convnet4")
    assert not home.exists()


def test_unknown_architecture(home: Path) -> None:
    refused(ModelError, "Unknown architecture 'rasnet18'", "evaluation.archs=convnet1-w4,rasnet18")
    assert not home.exists()


@pytest.mark.parametrize("arch", ["torchvision/squeezenet1_1", "timm/vit_tiny_patch16_224"])
def test_teacher_without_batchnorm(arch: str, home: Path) -> None:
    """Both can learn at this size; only L_bn cannot use them."""
    refused(
        ModelError,
        rf"teacher\.arch = {arch} has no BatchNorm.*synthesis\.weight_bn=0",
        *(f"teacher.arch={arch}", "data.image_size=16"),
    )
    assert not home.exists()


@pytest.mark.parametrize("settings", [(), ("synthesis.weight_bn=0", "relabel.batchnorm=batch")])
def test_another_teacher_without_batchnorm(settings: tuple[str, ...], home: Path) -> None:
    refused(
        ModelError,
        r"other_teachers\.1\.arch = convnet1-w4-in has no BatchNorm",
        *("other_teachers=[{arch: convnet1-w8}, {arch: convnet1-w4-in}]", *settings),
    )
    assert not home.exists()


def test_another_teacher_that_images_are_too_small_for(home: Path) -> None:
    refused(ModelError, r"convnet4 halves its input 4 times", "other_teachers=[{arch: convnet4}]")
    assert not home.exists()


# ---- the data -------------------------------------------------------------------------------------------------------


def test_more_images_than_the_smallest_class_has(home: Path) -> None:
    refused(DataError, r"schedule\.ipc = 141, but class '8' has only 140.*at most 140", "schedule.ipc=141")
    assert not home.exists()


def test_one_class_alone(home: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, "a")
    refused(DataError, r"there is one class alone, 'a'", *folder_of(tmp_path / "data"))
    assert not home.exists()


def test_limit_per_class_counts_for_ipc(home: Path) -> None:
    refused(DataError, r"schedule\.ipc = 9, but class '0' has only 8", "schedule.ipc=9", "data.limit_per_class=8")
    assert not home.exists()


@pytest.mark.parametrize("source", ["image_folder", "hf_parquet"])
def test_missing_folder(source: str, home: Path, tmp_path: Path) -> None:
    refused(DataError, rf"{tmp_path}/nowhere", f"data.source={source}", f"data.root={tmp_path}/nowhere")
    assert not home.exists()


def test_missing_split(home: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "data", "train")
    refused(DataError, r"no folder 'test'\. Folders there: train.*data\.test_split", *folder_of(tmp_path / "data"))
    assert not home.exists()


def test_test_classes_that_differ_in_parquet(home: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_parquet(root, "train", ["cat", "dog", "frog"])
    write_parquet(root, "test", ["dog", "cat", "frog"])
    refused(
        ConfigError,
        r"split 'test' has the classes 3 \(dog, cat, frog\) but split 'train' has 3 \(cat, dog, frog\)",
        *("data.source=hf_parquet", f"data.root={root}", "data.channels=3"),
    )
    assert not home.exists()


def test_test_classes_that_training_has_not(home: Path, tmp_path: Path) -> None:
    write_folder(tmp_path / "data", "train", "abc")
    write_folder(tmp_path / "data", "test", "abd")
    refused(DataError, r"/test has 1 classes that .*/train does not have: d", *folder_of(tmp_path / "data"))
    assert not home.exists()


@pytest.mark.parametrize(
    ("channels", "message"), [(1, r"0\.png is greyscale .*data\.channels=1"), (3, r"0\.png is a colour image")]
)
def test_grey_and_colour_do_not_mix(channels: int, message: str, home: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split, channels=channels)
    refused(DataError, message, *folder_of(tmp_path / "data"), f"data.channels={4 - channels}")
    assert not home.exists()


def test_grey_digits_as_colour(home: Path) -> None:
    refused(DataError, r"greyscale, but data\.channels is 3", "data.channels=3")
    assert not home.exists()


def a_text_file(folder: Path) -> None:
    (folder / "notes.txt").write_text("not an image")


def a_truncated_image(folder: Path) -> None:
    (folder / "0.png").write_bytes(png(0)[:60])


def an_empty_image(folder: Path) -> None:
    (folder / "3.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (a_text_file, r"/train/b/notes\.txt is not an image file"),
        (a_truncated_image, r"/train/b/0\.png cannot be read as an image"),
        (an_empty_image, r"/train/b/3\.png is empty"),
    ],
)
def test_a_spoilt_image_folder(spoil: Callable[[Path], Any], message: str, home: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_folder(tmp_path / "data", split)
    spoil(tmp_path / "data" / "train" / "b")
    refused(DataError, message, *folder_of(tmp_path / "data"))
    assert not home.exists()


# ---- the machine ----------------------------------------------------------------------------------------------------


def test_unwritable_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("CUDD_HOME", str(tmp_path / "file" / "home"))
    refused(ResourceError, rf"Folder {tmp_path}/file/home/cache: .*CUDD_HOME")


def test_what_is_right_is_let_through(make_home: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_home("right")
    monkeypatch.setenv("CUDD_HOME", str(home))
    recipe = apply_overrides(get_recipe("digits"), SMALL)
    with opened_run(recipe, partial(pipeline, recipe=recipe), frozenset({"keep", "train_network"})) as run:
        store = run.context.store
        assert store.client.get_run(run.context.pipeline_run).info.status == "RUNNING"
    assert store.client.get_run(run.context.pipeline_run).info.status == "FINISHED"


# ---- what only a later stage would meet -----------------------------------------------------------------------------


def checked(*overrides: str) -> None:
    recipe = apply_overrides(get_recipe("digits"), [*SMALL, *overrides])
    check_recipe(recipe, frozenset())
    check_data(recipe)


def test_each_split_goes_on_under_its_own_digest() -> None:
    recipe = apply_overrides(get_recipe("digits"), SMALL)
    data = check_data(recipe)
    train, test = (open_split(recipe.data, split) for split in ("train", "test"))
    assert (data.train, data.test, data.num_classes) == (train.digest, test.digest, 10) and data.train != data.test


def test_more_logits_than_classes_cannot_be_kept() -> None:
    checked("relabel.storage=topk", "relabel.top=10")
    with pytest.raises(ConfigError, match=r"relabel\.top = 11"):
        checked("relabel.storage=topk", "relabel.top=11")


def test_sre2l_alone_needs_batchnorm_too() -> None:
    with pytest.raises(ModelError, match="has no BatchNorm"):
        checked(
            *("teacher.arch=torchvision/squeezenet1_1", "data.image_size=16"),
            *("synthesis.enabled=false", "baselines=sre2l"),
        )


def test_features_need_a_linear_head() -> None:
    with pytest.raises(ModelError, match="no linear head"):
        checked(
            *("teacher.arch=torchvision/squeezenet1_1", "data.image_size=16"),
            *("synthesis.weight_bn=0", "synthesis.regularization=feature"),
        )
