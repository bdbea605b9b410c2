"""What a data source offers, and the configuration that names one."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from cudd_core.configuration import Configuration


class DataConfig(Configuration):
    """Where labelled images come from. `root` is a place, not a property of the data: it enters no stage key."""

    source: Literal["digits", "torchvision", "image_folder", "hf_parquet", "tiny_imagenet"] = Field(
        "digits", description="Kind of source."
    )
    root: str = Field("", description="Folder (or s3:// prefix, hf_parquet only) that holds the data.")
    name: str = Field("", description="torchvision dataset class, for example CIFAR10.")
    image_size: int = Field(32, ge=8, le=1024, description="Images are resized to this many pixels, square.")
    channels: Literal[1, 3] = Field(3, description="1 greyscale, 3 RGB. The files' own channel count must agree.")
    greyscale: Literal["refuse", "convert"] = Field(
        "refuse", description="A greyscale file among RGB data: an error, or repeated over the channels (ImageNet)."
    )
    train_split: str = Field("train", description="Split to distil.")
    test_split: str = Field("test", description="Split that accuracies are measured on.")
    image_column: str = Field("", description="hf_parquet: image column; empty: the one image column there is.")
    label_column: str = Field("", description="hf_parquet: label column; empty: the one integer column there is.")
    limit_per_class: int = Field(0, ge=0, description="Use only the first n images of each class; 0 uses all.")


class ImageSplit(Protocol):
    """One split of a data source: N labelled square images of one size, in a fixed order.

    `labels` int64 [N]; `class_names` K names, index = label; `digest` sha256 hex that changes with the images, their
    order or their labels (not with where they lie).
    """

    @property
    def labels(self) -> Tensor:
        """int64 [N]."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        ...

    @property
    def channels(self) -> int:
        """1 or 3."""
        ...

    @property
    def image_size(self) -> int:
        """H = W, in pixels."""
        ...

    @property
    def digest(self) -> str:
        """sha256 hex."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """Return images at `indices` (int64 [n]) as uint8 [n, C, H, W]. Raises DataError for one unreadable."""
        ...
