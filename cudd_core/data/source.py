"""The interface of a data source's splits, and the configuration that names a source."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field
from torch import Tensor

from cudd_core.configuration import Configuration
from cudd_core.data.pixels import Decoding


class DataConfig(Configuration):
    """Where labelled images come from. `root` is a place, not a property of the data: it enters no stage key."""

    source: Literal["digits", "torchvision", "image_folder", "hf_parquet", "tiny_imagenet", "imagenet"] = Field(
        "digits", description="Type of data source."
    )
    root: str = Field("", description="Folder that holds the data (hf_parquet: or an s3:// prefix).")
    name: str = Field("", description="torchvision dataset class, for example CIFAR10.")
    image_size: int = Field(32, ge=8, le=1024, description="Images are resized to a square of this many pixels a side.")
    channels: Literal[1, 3] = Field(3, description="1: greyscale, 3: RGB. The files' channel count must agree.")
    greyscale: Literal["refuse", "convert"] = Field(
        "refuse", description="Greyscale file in RGB data: refuse it, or repeat it over the channels (ImageNet)."
    )
    colour: Literal["refuse", "convert"] = Field(
        "refuse", description="Colour file in greyscale data: refuse it, or reduce it to its brightness."
    )
    white: int = Field(
        0,
        ge=0,
        le=65535,
        description="16-bit greyscale: value that maps to 255; 0: 65535, and nearly black files are refused.",
    )
    cache: bool = Field(True, description="Keep decoded images in the home folder, so that each is decoded only once.")
    train_split: str = Field("train", description="Split to distil.")
    test_split: str = Field("test", description="Split on which accuracies are measured.")
    image_column: str = Field("", description="hf_parquet: image column; empty: the only image column.")
    label_column: str = Field("", description="hf_parquet: label column; empty: the only integer column.")
    limit_per_class: int = Field(0, ge=0, description="Use only the first n images of each class; 0: use all.")

    @property
    def decoding(self) -> Decoding:
        """How an image file becomes pixels."""
        grey, colour = self.greyscale == "convert", self.colour == "convert"
        return Decoding(self.channels, self.image_size, grey, colour, self.white)

    @property
    def keeps_decoded(self) -> bool:
        """Whether decoded images are kept in a folder; digits and torchvision are held in memory once opened."""
        return self.cache and self.source not in ("digits", "torchvision")

    @property
    def pixel_identity(self) -> list[int]:
        """The settings that change the pixels of an accepted image; part of the digest of splits read from files."""
        return [self.channels, self.image_size, *([self.white] if self.white not in (0, 65535) else [])]


class ImageSplit(Protocol):
    """One split of a data source: N labelled square images of one size, in a fixed order.

    `labels` int64 [N]; `class_names` K names, index = label; `digest` sha256 hex that changes with the images, their
    order or their labels (not with where they are stored).
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
        """Return images at `indices` (int64 [n]) as uint8 [n, C, H, W]. Raises DataError if one is unreadable."""
        ...
