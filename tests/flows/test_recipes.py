"""Recipes: the paper's constants, files, overrides, and what is said about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cudd_core.configuration import Configuration
from cudd_core.errors import ConfigError
from cudd_core.schedule import curriculum_boundaries
from flows.catalogue import DATASETS, recipe_names
from flows.recipe import Recipe
from flows.recipes import apply_overrides, changes_of, find_recipe, get_recipe, load_recipe

TABLE_XII = {  # iterations, batch, learning rate, r_bn, jitter
    "cifar10-ipc10": (1000, 10, 0.25, 0.01, 4),
    "cifar100-ipc50": (1000, 100, 0.25, 0.01, 4),
    "tiny-imagenet-ipc100": (4000, 100, 0.25, 0.05, 4),
    "imagenet1k-ipc200": (4000, 100, 0.25, 0.01, 32),
    "imagenet21k-ipc10": (2000, 100, 0.05, 0.25, 32),
}
TABLE_XIII = {  # epochs, batch
    "cifar10-ipc50": (1000, 16),
    "cifar100-ipc10": (1000, 64),
    "tiny-imagenet-ipc50": (500, 64),
    "imagenet1k-ipc10": (300, 128),
    "imagenet21k-ipc20": (300, 32),
}


@pytest.mark.parametrize(("name", "expected"), TABLE_XII.items())
def test_synthesis_constants_are_the_papers(name: str, expected: tuple[float, ...]) -> None:
    s = get_recipe(name).synthesis
    assert (s.iterations, s.batch_size, s.learning_rate, s.weight_bn, s.jitter) == expected
    assert (s.weight_reg, s.weight_adv, s.first_bn_factor, s.crop_scale) == (1.0, 1.0, 10.0, (0.08, 1.0))


@pytest.mark.parametrize(("name", "expected"), TABLE_XIII.items())
def test_evaluation_constants_are_the_papers(name: str, expected: tuple[int, int]) -> None:
    recipe = get_recipe(name)
    training = recipe.evaluation.training
    assert (training.epochs, training.batch_size) == expected
    assert (training.optimizer, training.learning_rate, training.weight_decay) == ("adamw", 1e-3, 0.01)
    assert recipe.evaluation.seeds == 3
    assert recipe.evaluation.temperature == 20


@pytest.mark.parametrize("name", recipe_names())
def test_every_named_recipe_is_complete(name: str) -> None:
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.dataset in DATASETS
    assert name.endswith(f"ipc{recipe.schedule.ipc}") or name == "digits"


def test_a_larger_recipe_differs_from_a_smaller_one_in_ipc_alone() -> None:
    """Or it would reuse nothing of it."""
    families: dict[str, set[str]] = {}
    for name in recipe_names():
        settings = get_recipe(name).model_dump(exclude={"name", "description"})
        del settings["schedule"]["ipc"]
        families.setdefault(name.rpartition("-")[0], set()).add(repr(settings))
    assert len(families) == 11
    assert all(len(different) == 1 for different in families.values())


@pytest.mark.parametrize("ipc", [10, 50])
@pytest.mark.parametrize(
    ("kind", "changed"), [("", {"synthesis"}), ("enhanced-", {"synthesis", "relabel", "evaluation"})]
)
def test_recipes_of_one_data_set_are_the_paper_s_with_switches_on(ipc: int, kind: str, changed: set[str]) -> None:
    """So they share the teacher, and whatever else no switch reaches."""
    paper, other = (get_recipe(f"cifar10-convnet-{each}ipc{ipc}") for each in ("paper-", kind))
    switched = set()
    for name, section in paper:
        if isinstance(section, Configuration):
            switched |= {name} if getattr(other, name) != section else set()
            assert switched_off(getattr(other, name)) == section
    assert switched == changed


def switched_off(section: Configuration) -> Configuration:
    """The section with all its switches, and those of its sections, as if they were not there."""
    inner = {name: switched_off(value) for name, value in section if isinstance(value, Configuration)}
    return section.model_copy(update=section.switches_off() | inner)


def as_in_the_paper(name: str) -> bool:
    return not name.startswith(("cifar10-convnet-ipc", "cifar10-convnet-enhanced-"))


@pytest.mark.parametrize("name", [name for name in recipe_names() if as_in_the_paper(name)])
def test_the_paper_s_recipes_have_every_switch_off(name: str) -> None:
    for _, section in get_recipe(name):
        if isinstance(section, Configuration):
            assert switched_off(section) == section


def test_a_section_keeps_its_own_defaults_where_a_recipe_changes_part_of_it() -> None:
    """A teacher's training defaults to SGD although `TrainingConfig` defaults to AdamW."""
    teacher = get_recipe("imagenet21k-ipc10").teacher.training
    assert (teacher.optimizer, teacher.learning_rate) == ("sgd", 0.1)


def test_overrides_change_what_they_name_and_nothing_else() -> None:
    before = get_recipe("digits")
    after = apply_overrides(before, ["schedule.ipc=20", "synthesis.learning_rate=5e-2"])
    assert curriculum_boundaries(after.schedule) == (5, 10, 20)
    assert after.synthesis.learning_rate == 0.05
    undone = apply_overrides(
        after, [f"schedule.ipc={before.schedule.ipc}", f"synthesis.learning_rate={before.synthesis.learning_rate}"]
    )
    assert undone == before


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["seed=1", "schedule.ipc=20", "data.root=/a b"],
        ["evaluation.archs=convnet3,resnet18", "baselines=[]"],
        ['teacher.class_names=["a, b", "c"]'],
        ["teacher.flip=true", "synthesis.learning_rate=0.05", "teacher.seed=3"],
    ],
)
def test_what_a_recipe_differs_in_from_the_named_one_makes_it_again(changes: list[str]) -> None:
    found = changes_of(apply_overrides(get_recipe("digits"), changes))
    assert found is not None and sorted(found) == sorted(changes)


def test_a_recipe_of_one_s_own_differs_from_no_named_one() -> None:
    assert changes_of(get_recipe("digits").model_copy(update={"name": "mine"})) is None
    # A text that would be read as another is no change that could be typed.
    assert changes_of(apply_overrides(get_recipe("digits"), ["data.root='null'"])) is None


@pytest.mark.parametrize(
    ("override", "section", "field", "expected"),
    [
        ("compute.amp=off", "compute", "amp", "off"),
        ("relabel.mix=none", "relabel", "mix", "none"),
        ("teacher.flip=false", "teacher", "flip", False),
        ("evaluation.archs=convnet3,resnet18", "evaluation", "archs", ("convnet3", "resnet18")),
        ("evaluation.archs=[convnet3]", "evaluation", "archs", ("convnet3",)),
        ("synthesis.crop_scale=0.5,1", "synthesis", "crop_scale", (0.5, 1.0)),
        ("synthesis.weight_decay=1e-4", "synthesis", "weight_decay", 1e-4),
        ("data.root=s3://bucket/a=b", "data", "root", "s3://bucket/a=b"),
    ],
)
def test_values_are_read_as_people_write_them(override: str, section: str, field: str, expected: object) -> None:
    assert getattr(getattr(apply_overrides(get_recipe("digits"), [override]), section), field) == expected


def test_another_teacher_is_what_differs_from_the_first(tmp_path: Path) -> None:
    recipe = apply_overrides(
        get_recipe("digits"),
        ["other_teachers=[{arch: resnet18, training: {epochs: 3}}, {seed: 1}]", "teacher.training.batch_size=32"],
    )
    first, second, third = recipe.teachers
    assert second == first.model_copy(
        update={"arch": "resnet18", "training": first.training.model_copy(update={"epochs": 3})}
    )
    assert third == first.model_copy(update={"seed": 1}) and first.training.batch_size == 32
    written = {
        "a.yaml": "extends: digits\nother_teachers:\n  - arch: resnet18\n  - seed: 1\n",
        "a.toml": "extends = 'digits'\n[[other_teachers]]\narch = 'resnet18'\n[[other_teachers]]\nseed = 1\n",
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
        read = load_recipe(tmp_path / name)
        assert [(each.arch, each.seed) for each in read.other_teachers] == [("resnet18", None), ("convnet3-w32", 1)]
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert find_recipe(str(tmp_path / "all.yaml")) == recipe
    assert apply_overrides(recipe, ["other_teachers="]).teachers == (first,)


def test_what_tells_of_the_first_teacher_s_weights_tells_nothing_of_another_s() -> None:
    recipe = apply_overrides(
        get_recipe("digits"),
        [
            *("teacher.source=file", "teacher.weights=a.safetensors", "teacher.mean=0.1", "teacher.std=0.2"),
            "other_teachers=[{weights: b.safetensors}]",
        ],
    )
    (other,) = recipe.other_teachers
    assert (other.source, other.weights, other.mean, other.std) == ("file", "b.safetensors", (), ())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("schedule.ipc=0", ["schedule.ipc = 0", "at least 1"]),
        ("schedule.block_size=0", ["schedule.block_size = 0", "at least 1"]),
        ("student.warm_epoch_factor=2", ["student.warm_epoch_factor = 2", "at most 1"]),
        ("synthesis.learning_rate=0", ["synthesis.learning_rate = 0", "greater than 0"]),
        ("compute.amp=fp8", ["compute.amp = 'fp8'", "'off' or 'bf16'"]),
        ("schedule.ipc=many", ["schedule.ipc = 'many'", "a whole number"]),
        ("schedule.ipx=3", ["Unknown key 'schedule.ipx'", "schedule.ipc"]),
        ("synthesis.crop_scale=0.5,2", ["synthesis.crop_scale"]),
        ("synthesis.crop_scale=0.5", ["synthesis.crop_scale", "more values"]),
        ("synthesis.iteration_decay=0", ["synthesis.iteration_decay = 0", "greater than 0"]),
        ("synthesis.crop_anneal=fast", ["synthesis.crop_anneal = 'fast'", "'off', 'linear' or 'cosine'"]),
        ("evaluation.training.ema_decay=1", ["evaluation.training.ema_decay = 1", "less than 1"]),
        ("student.training.cosine_stretch=0.5", ["student.training.cosine_stretch = 0.5", "at least 1"]),
        ("evaluation.hard_label_weight=-1", ["evaluation.hard_label_weight = -1", "at least 0"]),
        ("synthesis.init=patches synthesis.patch_grid=3", ["synthesis.patch_grid = 3", "data.image_size = 16"]),
        ("synthesis.jitter=16", ["synthesis.jitter = 16", "data.image_size = 16"]),
        ("schedule.kind=explicit", ["schedule.boundaries", "schedule.ipc = 10"]),
        ("schedule.boundaries=5,10", ["schedule.boundaries", "schedule.kind=explicit"]),
        ("teacher.source=file", ["teacher.weights", "safetensors"]),
        ("teacher.source=torchvision", ["teacher.weights", "IMAGENET1K_V1"]),
        ("teacher.source=timm teacher.weights=a", ["teacher.weights", "timm/NAME.TAG", "teacher.source=file"]),
        ("teacher.class_order=as_data teacher.class_names=a,b", ["teacher.class_names", "as_data"]),
        ("teacher.mean=0.1,0.2,0.3", ["teacher.mean has 3", "data.channels = 1"]),
        ("data.source=torchvision", ["data.name"]),
        ("baselines=random,random", ["baselines"]),
        ("schedule=3", ["schedule is a section"]),
        ("other_teachers=[3]", ["other_teachers.0 is a section", "for example source"]),
        ('other_teachers=[{"training":3}]', ["other_teachers.0.training is a section", "for example optimizer"]),
        ('other_teachers=[{"arhc":3}]', ["Unknown key 'other_teachers.0.arhc'"]),
        ('other_teachers=[{"seed":-1}]', ["other_teachers.0.seed = -1", "at least 0", "Seed of the teacher"]),
        ('other_teachers=[{"std":[0]}]', ["other_teachers.0.std = [0]", "above 0"]),
        ('other_teachers=[{"mean":[0.1,0.2]}]', ["other_teachers.0.mean has 2", "data.channels = 1"]),
        ('other_teachers=[{"source":"mlflow"}]', ["other_teachers.0.source = mlflow needs other_teachers.0.weights"]),
        ("other_teachers=[{}]", ["other_teachers.0 would be the same network as teacher."]),
        ('other_teachers=[{"seed":0}]', ["other_teachers.0 would be the same network as teacher."]),
        ('other_teachers=[{"seed":1},{"seed":1}]', ["other_teachers.1 would be the same network as other_teachers.0"]),
        ('evaluation.archs=a,"b', ["evaluation.archs", "cannot be read"]),
        ("schedule.ipc", ["key=value"]),
        ("schedule.ipc=[", ["schedule.ipc"]),
        ("synthesis={jitter:1,jitter:2}", ["synthesis", "jitter"]),
    ],
)
def test_a_bad_override_is_explained(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(get_recipe("digits"), override.split())
    for word in words:
        assert word in str(caught.value)


def test_an_unknown_recipe_is_answered_with_near_misses() -> None:
    with pytest.raises(ConfigError, match=r"'cifar10-ipc1'.*Did you mean cifar10-ipc10"):
        get_recipe("cifar10-ipc1")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("mine.yaml", "extends: digits\nschedule: {ipc: 20}\nsynthesis:\n  learning_rate: 1e-1\n"),
        ("mine.toml", "extends = 'digits'\n[schedule]\nipc = 20\n[synthesis]\nlearning_rate = 1e-1\n"),
        ("mine.json", '{"extends": "digits", "schedule": {"ipc": 20}, "synthesis": {"learning_rate": 0.1}}'),
    ],
)
def test_a_recipe_file_extends_a_named_recipe(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    recipe = load_recipe(tmp_path / file)
    assert recipe == apply_overrides(
        get_recipe("digits").model_copy(update={"name": "mine"}), ["schedule.ipc=20", "synthesis.learning_rate=0.1"]
    )


def test_what_show_prints_is_a_recipe_file(tmp_path: Path) -> None:
    recipe = get_recipe("imagenet1k-ipc50")
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert find_recipe(str(tmp_path / "all.yaml")) == recipe


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("a.yaml", b"extends: digits\nschedule:\n  ipc: [", ["line 3", "not valid YAML"]),
        ("a.toml", b"extends = 'digits'\nschedule = {ipc = }\n", ["line 2", "not valid TOML"]),
        ("a.yaml", b"extends: digits\n\xff\xfe\x00", ["line 2", "not a text file"]),
        ("a.yaml", b"extends: digits\n\x00", ["not valid YAML"]),
        (
            "a.yaml",
            b"seed: 1\nsynthesis:\n  iterations: 7\nsynthesis:\n  jitter: 1\n",
            ["line 4", "synthesis is there"],
        ),
        ("a.json", b'{"seed": 1,\n "schedule": {"ipc": 1, "ipc": 2}}', ["line 2", "ipc is there twice"]),
        ("a.yaml", b"extends: digits\nseed: !!int abc\n", ["not valid YAML", "abc"]),
        ("a.yaml", b"extends: digits\nseed: !!int ''\n", ["not valid YAML"]),
        ("a.yaml", b"extends: digits\nname: !!timestamp then\n", ["not valid YAML"]),
        ("a.yaml", b"seed: " + b"[" * 3000, ["not valid YAML", "recursion"]),
        ("a.toml", b"seed = " + b"[" * 3000, ["not valid TOML", "recursion"]),
        ("a.toml", b"seed = " + b"9" * 5000, ["not valid TOML", "4300 digits"]),
        ("a.yaml", b"- digits\n", ["line 1", "key: value"]),
        ("a.yaml", b"", ["line 1", "key: value"]),
        ("a.yaml", b"extends: digitz\n", ["no recipe 'digitz'", "digits"]),
        ("a.yaml", b"extends: digits\nschedule: {ipcc: 3}\n", ["schedule.ipcc", "schedule.ipc"]),
        ("a.toml", b"extends = 'digits'\n[schedule]\nipc = 0\n", ["schedule.ipc = 0", "at least 1"]),
        ("a.txt", b"extends: digits\n", [".yaml"]),
    ],
)
def test_a_bad_file_is_explained_by_file_and_line(tmp_path: Path, file: str, content: bytes, words: list[str]) -> None:
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(path)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_aliases_that_stand_for_gigabytes_are_not_written_out(tmp_path: Path) -> None:
    lines = ["- &l0 [x, x, x, x, x, x, x, x, x]", *(f"- &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))]
    (tmp_path / "a.yaml").write_text("\n".join(["extends: digits", "baselines:", *lines]))
    with pytest.raises(ConfigError, match=r"baselines\.11 = \[\[\[\[\.\.\.\]") as caught:
        find_recipe(str(tmp_path / "a.yaml"))
    assert len(str(caught.value)) < 10**5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: there is no such recipe file"):
        find_recipe(str(tmp_path / "none.yaml"))


def test_recipes_cannot_be_changed_in_place() -> None:
    recipe: Recipe = get_recipe("digits")
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("/data/my set #2", "/data/my set #2"),
        ("2024", "2024"),
        ("C: drive", "C: drive"),
        ("&a b", "&a b"),
        ("[x]", "[x]"),
        ("' spaced '", " spaced "),
        ("null", ""),
        ("", ""),
    ],
)
def test_a_text_is_taken_as_it_stands(given: str, read: str) -> None:
    assert apply_overrides(get_recipe("digits"), [f"data.root={given}"]).data.root == read


@pytest.mark.parametrize("given", ["1:30", "0b_", "0x1F", "1_"])
def test_numbers_are_written_in_digits(given: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        apply_overrides(get_recipe("digits"), [f"seed={given}"])


def test_a_leading_nought_is_no_octal_number() -> None:
    assert apply_overrides(get_recipe("digits"), ["seed=017"]).seed == 17
