"""Space on the disk: what a run stores is counted, what lies there already is not asked for again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from cudd_core.errors import ResourceError
from cudd_core.objectives.configuration import MttConfig, SynthesisConfig
from flows.checks import check_data
from flows.comparison import all_stages
from flows.distill import pipeline
from flows.plan import plan
from flows.prepare import opened_run
from flows.recipe import Recipe
from flows.recipes import apply_overrides, get_recipe
from flows.space import bytes_lacking, check_space, expert_bytes
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("no_store_variables")

SMALL = ("data.image_size=8", "teacher.arch=convnet1-w4", "schedule.ipc=2", "schedule.step=1", "synthesis.jitter=1")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the disk seem to have so many bytes left."""

    def leave(number: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=number))

    return leave


@pytest.fixture
def store(make_home: Callable[[str], Path]) -> Store:
    return Store.from_environment(make_home("space")).connect()


def raising(error: Exception) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise error

    return refuse


def small(*overrides: str) -> Recipe:
    return apply_overrides(get_recipe("digits"), [*SMALL, *overrides])


def test_no_space(
    make_home: Callable[[str], Path], free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    home, recipe = make_home("full"), small()
    monkeypatch.setenv("CUDD_HOME", str(home))
    free(1000)
    stages = partial(pipeline, recipe=recipe)
    with (
        pytest.raises(ResourceError, match=rf"{home}/artifacts/.* has 1 kB free.*drop baselines"),
        opened_run(recipe, stages),
    ):
        pytest.fail("the run began")
    assert not Store.from_environment(home).pipelines.search()


def test_decoded_images_leave_the_room_that_a_run_needs(
    make_home: Callable[[str], Path], free: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[tuple[Path, int]] = []
    monkeypatch.setattr("flows.prepare.leave_room", lambda *what: left.append(what))
    monkeypatch.setattr("flows.prepare.check_memory", lambda *_: None)
    monkeypatch.setattr("flows.prepare.ray_session", raising(InterruptedError("far enough")))
    home, recipe = make_home("room"), small()
    monkeypatch.setenv("CUDD_HOME", str(home))
    stages = partial(pipeline, recipe=recipe)
    for size in (10**12, 10**8):
        free(size)
        with pytest.raises(InterruptedError), opened_run(recipe, stages):
            pytest.fail("the run began")
    store = Store.from_environment(home).connect()
    needed = sum(bytes_lacking(recipe, check_data(recipe), store, stages))
    assert left == [(store.output_folder, needed)] * 2


def test_labels_are_counted_as_they_are_stored(store: Store, free: Callable[[int], None]) -> None:
    """Just enough for the one form is not enough for the next larger one."""
    recipe = small("relabel.storage=full")
    data = check_data(recipe)
    # Three sets, in batches of 16 and 4; the student of the first curriculum sees half a set, in one batch.
    images, epochs = 3 * 20, recipe.evaluation.training.epochs
    taught, its_epochs = 10, recipe.student.training.epochs
    pixels = images * 8 * 8
    needed = {
        ("full", 1): epochs * images * 20 + its_epochs * taught * 20,
        ("int8", 1): epochs * (images * 10 + 3 * 2 * 4) + its_epochs * (taught * 10 + 4),
        ("full", 8): (epochs * images * 20 + its_epochs * taught * 20) // 8,
        ("none", 1): 0,
    }
    for (storage, reuse), size in needed.items():
        relabel = recipe.relabel.model_copy(update={"storage": storage, "reuse": reuse})
        stored = recipe.model_copy(update={"relabel": relabel})
        free(pixels + size)
        check_space(stored, data, store, partial(pipeline, recipe=stored))
        free(pixels + size - 1)
        with pytest.raises(ResourceError, match=r"relabel\.storage, relabel\.reuse"):
            check_space(stored, data, store, partial(pipeline, recipe=stored))


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("baselines=random,herding,sre2l", "relabel.epochs_per_shard=7"),
        ("evaluation.labels=hard",),
        ("student.train_last=true", "student.warm_start=true", "student.training.epochs=9"),
        ("synthesis.weight_adv=0", "select.policy=correct"),
        ("relabel.storage=none",),
    ],
)
def test_a_plan_and_a_run_that_has_nothing_yet_ask_for_the_same_space(store: Store, settings: tuple[str, ...]) -> None:
    recipe = small(*settings)
    images, labels, _ = bytes_lacking(recipe, check_data(recipe), store, partial(pipeline, recipe=recipe))
    planned = plan(recipe)
    assert (images, labels) == ((1 + len(recipe.baselines)) * planned.image_bytes, planned.labels.in_all)


def test_a_comparison_stores_labels_without_augmentation_too(store: Store, free: Callable[[int], None]) -> None:
    recipe = small()
    data, planned = check_data(recipe), plan(recipe)
    stages = partial(all_stages, recipe=recipe, ranking=True)
    images, labels, _ = bytes_lacking(recipe, data, store, stages)
    assert labels == planned.labels.in_all + 3 * planned.labels.of_set
    free(images + labels)
    check_space(recipe, data, store, stages, labelled=2)
    free(images + labels - 1)
    with pytest.raises(ResourceError, match="has yet to store"):
        check_space(recipe, data, store, stages, labelled=2)


def test_experts_are_counted(store: Store, free: Callable[[int], None]) -> None:
    mtt = MttConfig(arch="convnet1-w4-in", experts=3, expert_epochs=2, start_epochs=1, span=1, steps=1)
    synthesis = SynthesisConfig(objective="mtt", mtt=mtt)
    recipe = small("relabel.storage=none").model_copy(update={"synthesis": synthesis})
    data = check_data(recipe)
    # One block of 4 filters 3×3 on one channel, scale and shift, and a head on 4×4×4 features.
    weights = (4 * 9 + 4) + 2 * 4 + (4 * 16 * 10 + 10)
    assert expert_bytes(recipe, data) == 3 * (2 + 1) * 4 * weights
    free(3 * 20 * 64 + 9 * 4 * weights - 1)
    with pytest.raises(ResourceError, match=r"experts 25\.1 kB"):
        check_space(recipe, data, store, partial(pipeline, recipe=recipe))


def test_room_is_asked_of_the_disk_that_the_artifacts_lie_on(
    make_home: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDD_ARTIFACT_ROOT", str(tmp_path / "elsewhere"))
    store, recipe = Store.from_environment(make_home("small")).connect(), small()
    full: list[str] = []

    def usage(folder: Path) -> SimpleNamespace:
        is_full = any(str(folder).startswith(place) for place in full)
        return SimpleNamespace(total=10**12, used=0, free=0 if is_full else 10**11)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    stages = partial(pipeline, recipe=recipe)
    full.append(str(store.cache_folder.parent))
    check_space(recipe, check_data(recipe), store, stages)
    full.append(str(tmp_path / "elsewhere"))
    with pytest.raises(ResourceError, match=rf"{tmp_path}/elsewhere/.* has 0 B free"):
        check_space(recipe, check_data(recipe), store, stages)
