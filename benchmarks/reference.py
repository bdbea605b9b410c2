"""The synthesis loop of the paper written down directly: what the field's scripts cost, for comparison.

A transcription of Eq. 6 with none of the care of `cudd_core.objectives`: float32 in NCHW, torch's own layers, the view
made by slicing, `interpolate`, `flip` and `roll`, the variance of every layer over a permuted copy, L_adv by a Python
loop that reads the device for every image, losses read at every step. Networks are frozen: scripts that forget that
pay a third more. `tests/benchmarks/test_reference.py` holds it to the same loss and gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate, mse_loss

from cudd_core.data.augment import sample_crops
from cudd_core.objectives.configuration import SynthesisConfig


@dataclass(frozen=True)
class View:
    """A crop (top, left, height, width), mirrored or not, rolled by (down, right) pixels; one for the whole batch."""

    box: tuple[int, int, int, int]
    mirrored: bool
    roll: tuple[int, int]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the view of [n, C, H, W], back at full size."""
        top, left, height, width = self.box
        crop = images[:, :, top : top + height, left : left + width]
        view = interpolate(crop, size=images.shape[-2:], mode="bilinear", align_corners=False)
        if self.mirrored:
            view = torch.flip(view, dims=[3])
        return torch.roll(view, shifts=self.roll, dims=(2, 3))


def views(config: SynthesisConfig, size: int, rng: np.random.Generator) -> Iterator[View]:
    """Yield random views; the first is the first of `cudd_core.data.augment.resized_crop_warp` with the same `rng`."""
    while True:
        crops = sample_crops(1, size, config.crop_scale, config.flip, rng)
        down, right = rng.integers(0, config.jitter + 1, (1, 2))[0] if config.jitter else (0, 0)
        top, left, height, width = (int(value) for value in crops.boxes[0])
        yield View((top, left, height, width), bool(crops.mirrored[0]), (int(down), int(right)))


class ReferenceLoop:
    """Eq. 6 over one batch. `originals` normalised float32 [n, C, H, W], `labels` int64 [n]."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        originals: Tensor,
        labels: Tensor,
        low: Tensor,
        high: Tensor,
        config: SynthesisConfig,
    ) -> None:
        self.teacher, self.student, self.config = teacher, student, config
        self.originals, self.labels, self.low, self.high = originals, labels, low, high
        self.images = originals.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr=config.learning_rate, betas=(0.5, 0.9), eps=1e-8)
        self.distances: list[Tensor] = []
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(self._compare_statistics)

    def _compare_statistics(self, layer: Any, inputs: tuple[Tensor], _: Tensor) -> None:
        (x,) = inputs
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        self.distances.append(torch.norm(mean - layer.running_mean, 2) + torch.norm(variance - layer.running_var, 2))

    def loss(self, view: View) -> Tensor:
        """Return Eq. 6 of the images under one view."""
        config, labels = self.config, self.labels
        synthetic, originals = view(self.images), view(self.originals)
        self.distances = []
        logits = self.teacher(synthetic)
        loss = config.weight_ce * cross_entropy(logits, labels)
        factors = [config.first_bn_factor] + [1.0] * (len(self.distances) - 1)
        loss = loss + config.weight_bn * sum(f * d for f, d in zip(factors, self.distances, strict=True))
        loss = loss + config.weight_reg * mse_loss(synthetic, originals)
        probabilities = self.student(synthetic).softmax(1)
        answers = logits.argmax(1)
        adversarial = torch.zeros((), device=synthetic.device)
        for i in range(len(labels)):
            if answers[i].item() == labels[i].item():
                adversarial = adversarial - torch.log(1 - probabilities[i, labels[i]])
        return loss + config.weight_adv * adversarial / len(labels)

    def step(self, view: View) -> float:
        """Make one step; return the loss."""
        loss = self.loss(view)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for channel in range(self.images.shape[1]):
                self.images[:, channel].clamp_(float(self.low[channel]), float(self.high[channel]))
        return loss.item()
