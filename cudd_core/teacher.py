"""Where the teacher comes from: the configuration that training and loading share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from cudd_core.configuration import Configuration
from cudd_core.data.batches import Crop
from cudd_core.training import TrainingConfig


class TeacherConfig(Configuration):
    """Where the teacher comes from. Only the fields of the chosen source enter its stage key."""

    source: Literal["train", "torchvision", "timm", "file", "mlflow"] = Field(
        "train",
        description="Train on T, or load pretrained weights: a library's, a safetensors file's or a stage run's.",
    )
    arch: str = Field("resnet18", description="Architecture name (`cudd archs` lists them).")
    weights: str = Field(
        "",
        description="torchvision: weights name; file: safetensors file or fetched network; mlflow: a squeeze run's id.",
    )
    class_names: tuple[str, ...] = Field(
        (), description="What the outputs of loaded weights stand for, in order; empty: read from the weights."
    )
    class_order: Literal["by_name", "as_data"] = Field(
        "by_name",
        description="Loaded weights: outputs are matched with the data's classes by name, or assumed to be in the "
        "data's order.",
    )
    mean: tuple[float, ...] = Field(
        (), description="Channel means for loaded weights, in [0, 1]; empty: read from the weights."
    )
    std: tuple[float, ...] = Field(
        (), description="Channel standard deviations for loaded weights; empty: read from the weights."
    )
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Seed of the teacher's training; empty: the recipe's. If set, runs of other seeds share the "
        "teacher.",
    )
    training: TrainingConfig = TrainingConfig(
        optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, epochs=200, batch_size=128
    )
    crop: Crop = Field(
        "pad",
        description="Training crop: pad with the mean colour by image_size/8 and crop, random resized crop, or none.",
    )
    flip: bool = Field(True, description="Mirror half of the training images.")
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads for training the teacher, which the rest of the run waits for; 0: compute.threads.",
    )
    minimum_margin: float = Field(
        0.2, ge=0, lt=1, description="Preflight fails unless the accuracy is ≥ chance + margin · (1 − chance)."
    )

    @field_validator("mean", "std")
    @classmethod
    def _in_pixel_range(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if not all(0 <= value <= 1 and (value > 0 or info.field_name == "mean") for value in values):
            raise ValueError("values must be shares of 255, between 0 and 1, and a deviation above 0")
        return values
