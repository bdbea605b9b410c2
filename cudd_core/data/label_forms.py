"""Forms in which soft labels are stored: float16 logits, the largest of them, 8 bits each, or both together.

Every form is decoded to float16 logits, one batch at a time and on the device that trains. A row of logits z [K], with
sorted values z_(1) ≥ z_(2) ≥ … (ties ordered by class), is stored as follows:

`full`      z itself.
`topk`      z_(1) … z_(k), their classes, and one value τ for the other K − k classes:
                τ = T · (logsumexp of the others' z / T − log(K − k)).
            At temperature T the kept classes keep exactly their probabilities, and the rest of the mass is spread
            evenly. So with q the teacher's softmax among the other classes and m their mass,
                KL(softmax(z/T) ‖ softmax(decoded/T)) = m · (log(K − k) − entropy(q)),
            which is 0 where the others are equal, and for k ≥ K − 1.
`int8`      code = round(255 · (z − low) / (high − low)), halves to even, with low and high the extremes of the batch's
            logits: |decoded − z| ≤ (high − low) / 510, and the rounding of the result to float16.
`topk-int8` the values of `topk`, including τ, coded as in `int8`.
`none`      nothing: the teacher computes labels whenever they are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Storage = Literal["full", "int8", "topk", "topk-int8", "none"]

_LEVELS = 255


@dataclass(frozen=True)
class Column:
    """One tensor of a form: `width` values of `dtype` for every image, or for every batch, of an epoch."""

    per: Literal["image", "batch"]
    width: int
    dtype: torch.dtype


@dataclass(frozen=True)
class LabelForm:
    """How labels are stored. `top` (k) and `temperature` (T in τ) matter only for the `topk` forms."""

    storage: Storage = "full"
    top: int = 1
    temperature: float = 1.0

    def layout(self, num_classes: int) -> dict[str, Column]:
        """Return the columns by name; none for `none`.

        `logits` [E, n, w], or `codes` [E, n, w] and `range` [E, batches, 2] (low, high): w = K, or min(k + 1, K)
        kept values in descending order, τ last; `classes` [E, n, k]: the classes of the kept values.
        """
        if self.storage == "none":
            return {}
        kept = self.storage.startswith("topk")
        width = min(self.top + 1, num_classes) if kept else num_classes
        if self.storage.endswith("int8"):
            columns = {"codes": Column("image", width, torch.uint8), "range": Column("batch", 2, torch.float16)}
        else:
            columns = {"logits": Column("image", width, torch.float16)}
        return columns | ({"classes": Column("image", self.top, _index_dtype(num_classes))} if kept else {})

    def bytes(self, num_classes: int, epochs: int, images: int, batches: int) -> int:
        """Return the bytes of the labels of some epochs of `images` in `batches`, file headers aside."""
        counts = {"image": images, "batch": batches}
        columns = self.layout(num_classes).values()
        return epochs * sum(counts[each.per] * each.width * each.dtype.itemsize for each in columns)

    def empty(self, num_classes: int, epochs: int, images: int, batches: int) -> dict[str, Tensor]:
        """Return uninitialised columns for some epochs, on the host."""
        counts = {"image": images, "batch": batches}
        return {
            name: torch.empty(epochs, counts[column.per], column.width, dtype=column.dtype)
            for name, column in self.layout(num_classes).items()
        }

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """Return the columns of a batch: float16 logits [b, K] → [b, w] or [w], on their device."""
        columns: dict[str, Tensor] = {}
        if self.storage.startswith("topk"):
            logits, columns["classes"] = _keep(logits, self.top, self.temperature)
        if not self.storage.endswith("int8"):
            return {"logits": logits, **columns}
        low, high = logits.float().aminmax()
        scale = torch.where(high > low, _LEVELS / (high - low), 0.0)
        codes = ((logits.float() - low) * scale).round().to(torch.uint8)
        return {"codes": codes, "range": torch.stack([low, high]).half(), **columns}

    def encode_batches(self, logits: Tensor, sizes: list[int]) -> dict[str, Tensor]:
        """Return the columns of consecutive batches of `sizes` images, one after another: `encode` of each.

        float16 logits [images, K] → [images, w] or [batches, w], on their device.
        """
        if not self.storage.endswith("int8"):
            return self.encode(logits)  # every image is encoded by itself
        made = [self.encode(batch) for batch in logits.split(sizes)]
        return {name: torch.cat([each[name].reshape(-1, each[name].shape[-1]) for each in made]) for name in made[0]}


def decode(columns: Mapping[str, Tensor], num_classes: int) -> Tensor:
    """Return float16 logits [b, K] from a batch's columns: the inverse of `encode`, up to what the form loses."""
    if "codes" in columns:
        low, high = columns["range"].float()
        values: Tensor = (low + (high - low) * (columns["codes"].float() / _LEVELS)).half()
    else:
        values = columns["logits"]
    if "classes" not in columns:
        return values
    classes = columns["classes"].long()
    rest = values[:, -1:].repeat(1, num_classes)
    return rest.scatter(1, classes, values[:, : classes.shape[1]])


def _keep(logits: Tensor, top: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return float16 [b, min(k + 1, K)], the largest logits followed by τ, and the classes of the former [b, k]."""
    num_classes = logits.shape[1]
    # `sort` and not `topk`, whose order of equal values is not repeatable on CUDA.
    values, classes = logits.sort(dim=1, descending=True, stable=True)
    kept = values[:, :top]
    if top < num_classes:
        others = values[:, top:].float() / temperature
        level = temperature * (others.logsumexp(1, keepdim=True) - math.log(num_classes - top))
        kept = torch.cat([kept, level.half()], dim=1)
    return kept, classes[:, :top].to(_index_dtype(num_classes))


def _index_dtype(num_classes: int) -> torch.dtype:
    if num_classes <= 2**8:
        return torch.uint8
    return torch.int16 if num_classes <= 2**15 else torch.int32
