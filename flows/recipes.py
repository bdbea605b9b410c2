"""Named complete configurations, recipe files, and how `--set key=value` changes one."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from cudd_core.baselines import Method, baseline
from cudd_core.compute.runtime import ComputeConfig
from cudd_core.configuration import Configuration, Switch
from cudd_core.data.source import DataConfig
from cudd_core.errors import ConfigError
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.schedule import ScheduleConfig, curriculum_boundaries
from cudd_core.stages.relabel import RelabelConfig
from cudd_core.stages.select import SelectConfig
from cudd_core.stages.train_network import EvaluationConfig
from cudd_core.stages.train_student import StudentConfig
from cudd_core.teacher import TeacherConfig
from flows.catalogue import Settings, did_you_mean, merge, recipe_names, settings_of

__all__ = ["Baseline", "Recipe", "apply_overrides", "find_recipe", "get_recipe", "load_recipe", "recipe_names"]

Baseline = Literal["random", "selection", "herding", "kcenter", "sre2l", "cda"]

FILE_SUFFIXES = (".yaml", ".yml", ".toml", ".json")

_OF_WEIGHTS = frozenset({"class_names", "mean", "std"})
"""Fields of a teacher that tell of its weights alone: another teacher never has them from the first."""


class Recipe(Configuration):
    """Everything that determines a run's results, and nothing that does not (paths in `data.root` aside)."""

    name: str = Field(min_length=1, description="Name of the recipe.")
    description: str = Field("", description="One line for people.")
    dataset: str = Field("", description="Name of the data set, for people; `plan` knows the size of the usual ones.")
    seed: int = Field(0, ge=0, lt=2**31, description="The one seed; every random stream derives from it.")
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    other_teachers: Annotated[tuple[TeacherConfig, ...], Switch()] = Field(
        (), description="Teachers beside the first, each as what differs from it (docs/method.md; CV-DD, FADRM)."
    )
    schedule: ScheduleConfig = ScheduleConfig()
    select: SelectConfig = SelectConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    relabel: RelabelConfig = RelabelConfig()
    student: StudentConfig = StudentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    baselines: tuple[Baseline, ...] = Field(("random", "selection"), description="Compared under equal conditions.")
    compute: ComputeConfig = ComputeConfig()

    @property
    def teachers(self) -> tuple[TeacherConfig, ...]:
        """Return all teachers: θ*, then those that stand beside it."""
        return (self.teacher, *self.other_teachers)

    @model_validator(mode="after")
    def _fields_agree(self) -> Recipe:
        curriculum_boundaries(self.schedule)
        size = self.data.image_size
        if self.schedule.kind != "explicit" and self.schedule.boundaries:
            raise ConfigError(
                f"schedule.boundaries is set but schedule.kind is {self.schedule.kind!r}, which ignores it. "
                "Set schedule.kind=explicit, or leave schedule.boundaries empty."
            )
        if self.synthesis.jitter >= size:
            raise ConfigError(
                f"synthesis.jitter = {self.synthesis.jitter} must be smaller than data.image_size = {size}."
            )
        if self.synthesis.init == "patches" and size % self.synthesis.patch_grid:
            raise ConfigError(
                f"synthesis.patch_grid = {self.synthesis.patch_grid} must divide data.image_size = {size}, since "
                "patches fill the image."
            )
        of_eq_6 = {"sre2l", "cda"} & set(self.baselines)
        if self.synthesis.enabled and self.synthesis.objective != "cudd" and of_eq_6:
            raise ConfigError(
                f"baselines: {' and '.join(sorted(of_eq_6))}: Eq. 6 without some of its terms, and synthesis.objective "
                f"= {self.synthesis.objective} has none of them. Leave it out, or set synthesis.objective=cudd."
            )
        for number, teacher in enumerate(self.teachers):
            self._check_teacher(number, teacher)
        if self.data.source == "torchvision" and not self.data.name:
            raise ConfigError("data.source = torchvision needs data.name, for example data.name=CIFAR10.")
        if len(set(self.baselines)) != len(self.baselines):
            raise ConfigError(f"baselines = {list(self.baselines)} names one twice.")
        return self

    def _check_teacher(self, number: int, teacher: TeacherConfig) -> None:
        section, channels = teacher_section(number), self.data.channels
        for field in ("mean", "std"):
            values = getattr(teacher, field)
            if values and len(values) != channels:
                raise ConfigError(
                    f"{section}.{field} has {len(values)} value(s) but data.channels = {channels}. Give one per "
                    "channel."
                )
        if teacher.source in ("file", "mlflow") and not teacher.weights:
            what = "the path of a safetensors file" if teacher.source == "file" else "an MLflow run id"
            raise ConfigError(f"{section}.source = {teacher.source} needs {section}.weights: {what}.")
        for before, other in enumerate(self.teachers[:number]):
            if self._of_its_own(other) == self._of_its_own(teacher):
                raise ConfigError(
                    f"{section} would be the same network as {teacher_section(before)}. Give it a seed of its own "
                    "(where it is trained), another arch, or other weights."
                )

    def _of_its_own(self, teacher: TeacherConfig) -> TeacherConfig:
        """Return a teacher without what makes no other network of it."""
        seed = None if teacher.source != "train" else self.seed if teacher.seed is None else teacher.seed
        return teacher.model_copy(update={"seed": seed, "minimum_margin": 0.0})


def teacher_section(number: int) -> str:
    """Return the section that the `number`-th of `Recipe.teachers` is configured in, as messages name it."""
    return "teacher" if number == 0 else f"other_teachers.{number - 1}"


def get_recipe(name: str) -> Recipe:
    """Return the named recipe.

    Raises:
        ConfigError: no recipe of that name.

    Example:
        >>> get_recipe("cifar10-ipc50").schedule.ipc
        50
    """
    return _validated({"name": name, **settings_of(name)})


def load_recipe(path: Path) -> Recipe:
    """Return the recipe of a YAML, TOML or JSON file: `extends: NAME` (a named recipe) and what differs from it.

    Without `extends` the file changes the defaults of `Recipe`; without `name` the recipe is called like the file.

    Raises:
        ConfigError: a file that cannot be read or parsed (with the line), an unknown recipe or key, a bad value.
    """
    settings = _read(path)
    base = settings.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise ConfigError(f"{path}: extends must be the name of a recipe, not {base!r}.")
    try:
        inherited = settings_of(base) if base else {}
        return _validated(merge({"name": path.stem}, inherited, settings))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def find_recipe(name_or_file: str) -> Recipe:
    """Return a recipe by name, or from a file if the text looks like one (a suffix or a slash) and is no name."""
    looks_like_file = Path(name_or_file).suffix in FILE_SUFFIXES or "/" in name_or_file
    if looks_like_file and name_or_file not in recipe_names():
        return load_recipe(Path(name_or_file).expanduser())
    return get_recipe(name_or_file)


def apply_overrides(recipe: Recipe, overrides: Iterable[str]) -> Recipe:
    """Return `recipe` with `key=value` changes, for example `schedule.ipc=20` or `evaluation.archs=convnet3,resnet18`.

    Texts are taken as they stand. Other values are YAML with `true` and `false` as the only booleans, so `off` and
    `none` stay words. A list may be written with commas alone; one of mappings needs its brackets, for example
    `other_teachers=[{arch: resnet50}, {seed: 1}]`.

    Raises:
        ConfigError: no `=`, an unknown key (near misses are named), or a value that is not allowed there.
    """
    settings = recipe.model_dump()
    known = field_paths(Recipe)
    for text in overrides:
        key, equals, raw = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {text!r} is not of the form key=value, for example --set schedule.ipc=20.")
        if key not in known:
            raise ConfigError(f"Unknown key {key!r}.{did_you_mean(key, known)} `cudd show` lists every key.")
        try:
            value = _text(raw) if known[key] is str else yaml.load(raw, Loader=_Loader)
            if get_origin(known[key]) is tuple and not isinstance(value, list | dict):
                value = [yaml.load(part, Loader=_Loader) for part in raw.split(",")] if raw.strip() else []
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {key}: {raw!r} cannot be read as a value ({_problem(error)}).") from error
        change: Any = value
        for part in reversed(key.split(".")):
            change = {part: change}
        settings = merge(settings, change)
    return _validated(settings)


def _text(raw: str) -> str:
    """A text as it stands, whatever YAML would make of it; in quotes of its own where it begins or ends with spaces."""
    text = raw.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return "" if text in ("null", "~") else text


def field_paths(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every dotted key of a configuration, sections included, with its annotation."""
    paths: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        paths[prefix + name] = field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths |= field_paths(field.annotation, f"{prefix}{name}.")
    return paths


class _Loader(yaml.SafeLoader):
    """YAML with 1.2's booleans and numbers: `off`, `no` and `none` are words, `5e-4` is a number, `1:30` is none."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":int", ":float", ":timestamp"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _read(path: Path) -> Settings:
    if path.suffix not in FILE_SUFFIXES:
        raise ConfigError(f"{path}: a recipe file ends in {', '.join(FILE_SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such recipe file.") from error
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}, line {line}: not a text file (UTF-8 expected).") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    try:
        settings = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, Loader=_Loader)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        where = int(found[1]) if found else text.count("\n") + 1
        raise ConfigError(f"{path}, line {where}: not valid TOML ({error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line(error)}: not valid YAML ({_problem(error)}).") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}, line 1: a recipe is a list of `key: value` lines, for example `extends: digits`.")
    return settings


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark else ", line 1"


def _problem(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).splitlines()[0]


def _validated(settings: Mapping[str, Any]) -> Recipe:
    """Lay settings over the defaults of `Recipe`, where a section's may differ from its class's, and check them.

    Another teacher is what it says laid over the first one.
    """
    merged = merge(Recipe(name="defaults").model_dump(), settings)
    first, others = merged["teacher"], merged["other_teachers"]
    if isinstance(first, Mapping) and isinstance(others, list | tuple):
        shared = {name: value for name, value in first.items() if name not in _OF_WEIGHTS}
        merged["other_teachers"] = [merge(shared, each) if isinstance(each, Mapping) else each for each in others]
    return _checked(merged, "")


def methods(recipe: Recipe) -> tuple[Method, dict[str, Method]]:
    """Return what will be synthesised: CUDD's own method, and by name the baselines that are configurations.

    Raises:
        ConfigError: a baseline that the recipe's settings leave nothing of.
    """
    own = Method(recipe.schedule, recipe.select, recipe.synthesis)
    others: dict[str, Method] = {}
    for name in recipe.baselines:
        if name != "selection":
            try:
                others[name] = baseline(name, own)
            except ValidationError as error:
                why = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise ConfigError(f"baselines: {name} cannot be made of this recipe: {why}") from error
    return own, others


def stored_recipe(config: object, of: str) -> Recipe:
    """Return the recipe that a run or an export carries, complete. Raises ConfigError for one of another version."""
    return _checked(config, f"The recipe of {of} is not one of this version.\n")


def _checked(settings: object, preface: str) -> Recipe:
    try:
        return Recipe.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(preface + "\n".join(_explain(dict(one)) for one in error.errors())) from error


_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "string": "text", "tuple": "a list"}


def _explain(error: dict[str, Any]) -> str:
    """Say in one sentence what pydantic found: the dotted field, its value, and what would be right."""
    steps = [str(step) for step in error["loc"]]
    key, kind, context = ".".join(steps), str(error["type"]), error.get("ctx", {})
    value = error["input"]
    known = field_paths(Recipe)
    if kind == "extra_forbidden":
        return f"Unknown key {key!r}.{did_you_mean(key, known)} `cudd show` lists every key."
    if kind == "missing":
        return f"{key} is missing." if not steps[-1].isdigit() else f"{'.'.join(steps[:-1])} needs more values."
    if kind == "value_error" and steps and steps[-1].isdigit():  # an element of a list
        key = ".".join(steps[:-1])
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{key} = {value!r} is out of range: it must be {words} {context[name]}.{_meaning(steps)}"
    if kind == "literal_error":
        return f"{key} = {value!r} is not allowed: it must be {context['expected']}.{_meaning(steps)}"
    if kind == "value_error":
        shown = f"{key}: " if isinstance(value, Mapping) else f"{key} = {value!r}: "
        return f"{shown if key else ''}{context['error']}."
    expected = next((words for start, words in _KINDS.items() if kind.startswith(start)), "")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{key} is a section: set its fields, for example {_example(key, known)}."
    return (
        f"{key} = {value!r} must be {expected}.{_meaning(steps)}" if expected else f"{key} = {value!r}: {error['msg']}."
    )


def _example(section: str, known: Mapping[str, Any]) -> str:
    # Sections in a list are no keys of their own; those that there are have the fields of `teacher`.
    like = re.sub(r"^other_teachers\.\d+", "teacher", section)
    example = next((key for key in known if key.startswith(like + ".")), like)
    return example if like == section else example.removeprefix(like + ".")


def _meaning(steps: list[str]) -> str:
    """Return the description of a field, as a sentence to follow a message."""
    model: Any = Recipe
    field: FieldInfo | None = None
    for step in steps:
        if step.isdigit() and get_origin(model) is tuple:
            model = get_args(model)[0]
            continue
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or step not in model.model_fields:
            break
        field = model.model_fields[step]
        model = field.annotation
    return f" ({field.description.rstrip('.')}.)" if field is not None and field.description else ""
