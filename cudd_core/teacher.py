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
        "train", description="Train on T; load a library's pretrained weights, a safetensors file, or a stage run."
    )
    arch: str = Field("resnet18", description="Architecture name (`cudd archs`).")
    weights: str = Field(
        "", description="torchvision: weights name; file: safetensors or fetched network; mlflow: id of a squeeze run."
    )
    class_names: tuple[str, ...] = Field((), description="Class order of loaded weights; empty: taken from them.")
    class_order: Literal["by_name", "as_data"] = Field(
        "by_name",
        description="Loaded weights: class names must equal the data's, or are taken to stand in the data's order.",
    )
    mean: tuple[float, ...] = Field((), description="Channel means of loaded weights, in [0, 1]; empty: theirs.")
    std: tuple[float, ...] = Field((), description="Channel deviations of loaded weights; empty: theirs.")
    seed: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="Seed of its training; empty: the recipe's. Runs of other seeds then share it.",
    )
    training: TrainingConfig = TrainingConfig(
        optimizer="sgd", learning_rate=0.1, weight_decay=5e-4, epochs=200, batch_size=128
    )
    crop: Crop = Field(
        "pad", description="Training crop: zero-pad by image_size/8 and crop, random resized crop, or none."
    )
    flip: bool = Field(True, description="Mirror half of the training images.")
    threads: int = Field(
        0,
        ge=0,
        le=256,
        description="CPU threads of its training, before which nothing else begins; 0: compute.threads.",
    )
    minimum_margin: float = Field(
        0.2, ge=0, lt=1, description="Preflight fails unless accuracy ≥ chance + margin · (1 − chance)."
    )

    @field_validator("mean", "std")
    @classmethod
    def _in_pixel_range(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        if not all(0 <= value <= 1 and (value > 0 or info.field_name == "mean") for value in values):
            raise ValueError("values must be shares of 255, between 0 and 1, and a deviation above 0")
        return values
