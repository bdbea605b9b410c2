"""The configuration of synthesis."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator
from pydantic.fields import FieldInfo

from cudd_core.configuration import Configuration, Switch
from cudd_core.data.augment import CropScale
from cudd_core.data.batches import Crop

SHARED = frozenset({"objective", "enabled", "iterations", "iteration_decay", "log_every"})
"""Fields of `SynthesisConfig` that every objective reads."""


class MttConfig(Configuration):
    """Trajectory matching; defaults are those of its paper for CIFAR-10 at 10 images per class (docs/objectives.md)."""

    arch: str = Field("convnet3-in", description="ConvNet used for the experts and for the students that follow them.")
    experts: int = Field(100, ge=1, description="Networks trained on T, each from a different seed.")
    expert_epochs: int = Field(50, ge=1, description="Epochs of each expert; a snapshot is kept after each.")
    expert_batch_size: int = Field(256, ge=1, description="Images per step of an expert.")
    expert_learning_rate: float = Field(
        0.01, gt=0, description="Learning rate of the experts' plain SGD (no momentum, decay or schedule)."
    )
    crop: Crop = Field("pad", description="Crop of both real and synthetic training images.")
    flip: bool = Field(True, description="Mirror half of the training images (turn off for digits and text).")
    steps: int = Field(30, ge=1, description="N: a student's steps on the synthetic set.")
    span: int = Field(2, ge=1, description="M: number of the expert's epochs that these N steps have to cover.")
    start_epochs: int = Field(15, ge=1, description="T⁺: students start from an expert after 0 … T⁺ − 1 epochs.")
    batch_size: int = Field(0, ge=0, description="Synthetic images per student step; limits memory. 0: all.")
    step_size: float = Field(0.01, gt=0, description="α: the students' initial learning rate; it is learned too.")
    step_size_learning_rate: float = Field(
        1e-5, ge=0, description="Learning rate of SGD on α, momentum 0.5. 0: α stays fixed."
    )
    pixel_learning_rate: float = Field(1000.0, gt=0, description="Learning rate of SGD on the pixels, momentum 0.5.")

    @property
    def last_epoch(self) -> int:
        """The last epoch of an expert that a student is compared with."""
        return self.start_epochs - 1 + self.span

    @model_validator(mode="after")
    def _targets_exist(self) -> MttConfig:
        if self.last_epoch > self.expert_epochs:
            raise ValueError(
                f"start_epochs = {self.start_epochs} and span = {self.span} look at epoch {self.last_epoch} of experts "
                f"that train for expert_epochs = {self.expert_epochs}"
            )
        return self


class SynthesisConfig(Configuration):
    """The choice of objective, and all of Eq. 6 with its optimiser; defaults are the paper's Table XII for CIFAR-10.

    With an objective other than `cudd`, the fields of Eq. 6 must keep their defaults: values that nothing reads are
    refused.
    """

    objective: Literal["cudd", "mtt"] = Field(
        "cudd", description="What is minimised: Eq. 6, or the distance to experts' trajectories (Table IV)."
    )
    mtt: MttConfig = MttConfig()
    enabled: bool = Field(True, description="Off: keep T_j unchanged (selection only, random real images).")
    init: Literal["real", "noise", "patches"] = Field(
        "real",
        description="S_j starts as T_j, as standard normal noise (SRe2L), or as patches of several originals (RDED).",
    )
    patch_grid: int = Field(
        2, ge=2, le=8, description="init=patches: patches per side, each from a different original."
    )
    patch_candidates: int = Field(
        5,
        ge=1,
        le=1000,
        description="init=patches: crops tried per original; the one the teacher is surest of is used.",
    )
    iterations: int = Field(1000, ge=1, description="Steps per batch; with mtt, for all new images together.")
    iteration_decay: Annotated[float, Switch()] = Field(
        1.0, gt=0, le=1, description="Factor on the iterations for each further curriculum (DELT)."
    )
    batch_size: int = Field(10, ge=1, description="Images optimised together; one per class until the classes run out.")
    class_order: Annotated[Literal["sequence", "permuted"], Switch()] = Field(
        "sequence",
        description="Which classes of a slice share a batch: neighbours, or a new random order for every slice.",
    )
    learning_rate: float = Field(0.25, gt=0, description="Adam's learning rate (β 0.5/0.9, ε 1e-8), cosine to 0.")
    weight_decay: float = Field(0.0, ge=0, description="Adam's L2 term (Table XII says 1e-4).")
    weight_ce: float = Field(1.0, ge=0, description="Weight of L_ce.")
    weight_bn: float = Field(0.01, ge=0, description="Weight of L_bn.")
    first_bn_factor: float = Field(10.0, ge=0, description="Extra factor on L_bn at the first layer.")
    bn_statistics: Annotated[Literal["running", "pool"], Switch()] = Field(
        "running", description="What L_bn matches: the teacher's running statistics, or those of the pool R∩W (PSM)."
    )
    weight_reg: float = Field(1.0, ge=0, description="α_reg, the weight of L_reg.")
    weight_adv: float = Field(
        1.0, ge=0, description="α_adv, the weight of L_adv, which is absent in the first curriculum."
    )
    regularization: Literal["pixel", "feature"] = Field(
        "pixel", description="Space in which L_reg is computed (Table VI)."
    )
    teacher_correct_only: bool = Field(True, description="Apply L_adv only where the teacher is right (Table X).")
    crop_scale: CropScale = Field((0.08, 1.0), description="Area range of the random resized crop.")
    crop_anneal: Annotated[Literal["off", "linear", "cosine"], Switch()] = Field(
        "off", description="Lower the smallest crop area from the top of the range to the bottom over the iterations."
    )
    crops: Literal["batch", "image"] = Field(
        "batch", description="One crop, flip and roll per batch, or one per image."
    )
    flip: bool = Field(True, description="Mirror half of the augmented views (turn off for digits and text).")
    jitter: int = Field(4, ge=0, description="Largest circular roll in pixels along each axis.")
    log_every: int = Field(50, ge=1, description="Iterations between logged losses.")

    @property
    def minimises_eq_6(self) -> bool:
        """Whether images are optimised by Eq. 6, with its teachers and student."""
        return self.enabled and self.objective == "cudd"

    @property
    def unread(self) -> Set[str]:
        """Fields that the chosen objective does not read: Eq. 6's, or the sections of other objectives.

        Such a section bears the objective's name.
        """
        fields = type(self).model_fields
        sections = {name for name in get_args(fields["objective"].annotation) if name in fields}
        return sections if self.objective == "cudd" else fields.keys() - SHARED - {self.objective}

    @property
    def matches_trajectories(self) -> bool:
        """Whether experts are needed, whose training trajectories are matched."""
        return self.enabled and self.objective == "mtt"

    @property
    def uses_pool_statistics(self) -> bool:
        """Whether statistics of the curriculum's pool are needed."""
        return self.enabled and self.weight_bn > 0 and self.bn_statistics == "pool"

    def in_curriculum(self, curriculum: int) -> SynthesisConfig:
        """Return the configuration of curriculum `curriculum` (from 1): the same, with its own number of iterations."""
        iterations = max(1, round(self.iterations * self.iteration_decay ** (curriculum - 1)))
        return self.model_copy(update={"iterations": iterations, "iteration_decay": 1.0})

    @model_validator(mode="after")
    def _some_term_has_weight(self) -> SynthesisConfig:
        if self.enabled and self.objective == "cudd" and not (self.weight_ce or self.weight_bn or self.weight_reg):
            raise ValueError("weight_ce, weight_bn and weight_reg are all 0: nothing is left to minimise")
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> SynthesisConfig:
        fields = type(self).model_fields
        if changed := sorted(name for name in self.unread if getattr(self, name) != fields[name].default):
            back = " ".join(setting for name in changed for setting in _back(name, getattr(self, name), fields[name]))
            raise ValueError(
                f"objective = {self.objective} does not read {', '.join(changed)}, which therefore must have their "
                f"defaults, whatever the recipe sets them to: {back}"
            )
        return self


def _back(name: str, value: object, field: FieldInfo) -> list[str]:
    """Return the settings that give a changed field, or all changed fields of a section, its default."""
    if isinstance(value, Configuration):
        inner = ((each, getattr(value, each), info) for each, info in type(value).model_fields.items())
        return [text for each, now, info in inner if now != info.default for text in _back(f"{name}.{each}", now, info)]
    default = field.default
    if isinstance(default, tuple):
        return [f"synthesis.{name}={','.join(map(str, default))}"]
    return [f"synthesis.{name}={str(default).lower() if isinstance(default, bool) else default}"]
