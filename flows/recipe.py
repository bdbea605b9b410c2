"""What a recipe is: everything that determines a run's results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

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

Baseline = Literal["random", "selection", "herding", "kcenter", "sre2l", "cda"]


class Recipe(Configuration):
    """Everything that determines a run's results, and nothing else (apart from the path in `data.root`)."""

    name: str = Field(min_length=1, description="Name of the recipe.")
    description: str = Field("", description="One line for human readers.")
    dataset: str = Field("", description="Display name of the data set; `plan` knows the sizes of the usual ones.")
    seed: int = Field(0, ge=0, lt=2**31, description="Seed from which all random streams are derived.")
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    other_teachers: Annotated[tuple[TeacherConfig, ...], Switch()] = Field(
        (), description="Further teachers: how each differs from the first (docs/method.md; CV-DD, FADRM)."
    )
    schedule: ScheduleConfig = ScheduleConfig()
    select: SelectConfig = SelectConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    relabel: RelabelConfig = RelabelConfig()
    student: StudentConfig = StudentConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    baselines: tuple[Baseline, ...] = Field(
        ("random", "selection"), description="Sets to compare with, under equal conditions."
    )
    compute: ComputeConfig = ComputeConfig()

    @property
    def teachers(self) -> tuple[TeacherConfig, ...]:
        """Return all teachers: θ*, then the others."""
        return (self.teacher, *self.other_teachers)

    @property
    def student_arch(self) -> str:
        """Return the students' architecture: the teacher's unless set."""
        return self.student.arch or self.teacher.arch

    @property
    def evaluation_archs(self) -> tuple[str, ...]:
        """Return the architectures that sets are evaluated on: the teacher's unless set."""
        return self.evaluation.archs or (self.teacher.arch,)

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
        if teacher.source in _WEIGHTS and not teacher.weights:
            raise ConfigError(
                f"{section}.source = {teacher.source} needs {section}.weights: {_WEIGHTS[teacher.source]}."
            )
        if teacher.source == "timm" and teacher.weights:
            raise ConfigError(
                f"{section}.weights is set but {section}.source = timm, which takes the weights' tag in {section}.arch "
                f"(timm/NAME.TAG). Leave {section}.weights empty, or read a file with {section}.source=file."
            )
        if teacher.class_order == "as_data" and teacher.class_names:
            raise ConfigError(
                f"{section}.class_names is set but {section}.class_order = as_data, which ignores it. Set "
                f"{section}.class_order=by_name, or leave {section}.class_names empty."
            )
        for before, other in enumerate(self.teachers[:number]):
            if self._of_its_own(other) == self._of_its_own(teacher):
                raise ConfigError(
                    f"{section} would be the same network as {teacher_section(before)}. Give it a seed of its own "
                    "(where it is trained), another arch, or other weights."
                )

    def _of_its_own(self, teacher: TeacherConfig) -> TeacherConfig:
        """Return a teacher without the settings that do not change its network."""
        seed = None if teacher.source != "train" else self.seed if teacher.seed is None else teacher.seed
        return teacher.model_copy(update={"seed": seed, "minimum_margin": 0.0})


_WEIGHTS = {
    "torchvision": "the name of its weights, for example IMAGENET1K_V1",
    "file": "the path of a safetensors file",
    "mlflow": "an MLflow run id",
}
"""`TeacherConfig.source` → what `weights` has to name; other sources do not read it."""


def teacher_section(number: int) -> str:
    """Return the section, as messages name it, that configures the `number`-th of `Recipe.teachers`."""
    return "teacher" if number == 0 else f"other_teachers.{number - 1}"


def methods(recipe: Recipe) -> tuple[Method, dict[str, Method]]:
    """Return the methods that make sets: CUDD's own, and by name the baselines that are configurations of it.

    Raises:
        ConfigError: a baseline cannot be made from this recipe's settings.
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


def field_paths(model: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return every dotted key of a configuration, sections included, with its annotation."""
    paths: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        paths[prefix + name] = field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            paths |= field_paths(field.annotation, f"{prefix}{name}.")
    return paths
