"""Trajectory matching (Cazenavette et al., CVPR 2022) within a curriculum: the new images of all classes together.

A student starts where an expert was after t epochs, takes N steps of SGD on S_{1:j}, and should arrive where the expert
was M epochs later. The gradient goes back through the steps to the new images and to the step size; the images of
earlier curricula are trained on too, but stay fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cudd_core.compute.runtime import Runtime
from cudd_core.compute.transfer import upload
from cudd_core.data.batches import training_warp
from cudd_core.errors import ConfigError
from cudd_core.losses.trajectory import trajectory_distance
from cudd_core.models.stateless import leaves, sgd_step
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.interface import Batch, Descent, Terms
from cudd_core.records import Trajectory
from cudd_core.seeding import host_rng

MOMENTUM = 0.5
"""Momentum of the SGD over pixels and step size."""


class MttObjective:
    """The distance to the experts after N steps on S_{1:j}.

    `network`: stateless (`cudd_core.models.stateless`), on the device. `experts`: trajectories of that architecture, on
    the host, at least T⁺ − 1 + M epochs long. `earlier`: the images of S_{1:j-1}, [m, C, H, W] normalised floats, and
    their labels, int64 [m], on the device.
    """

    def __init__(
        self,
        network: nn.Module,
        experts: Sequence[Trajectory],
        earlier: tuple[Tensor, Tensor],
        config: SynthesisConfig,
        runtime: Runtime,
    ) -> None:
        self.network, self.experts, self.earlier, self.runtime = network, experts, earlier, runtime
        self.iterations, self.log_every, self.config = config.iterations, config.log_every, config.mtt

    def batches(self, num_slices: int, num_classes: int) -> Iterator[Tensor]:
        """Yield the positions of all images at once: a student trains on the whole set."""
        yield torch.arange(num_slices * num_classes)

    def descent(self, batch: Batch) -> Descent:
        """Start S_j from T_j, then use SGD with momentum over pixels and step size, at constant learning rates."""
        config = self.config
        images = batch.originals.clone().requires_grad_()
        step_size = torch.tensor(config.step_size, device=images.device, requires_grad=True)
        optimizer = torch.optim.SGD(
            [
                {"params": [images], "lr": config.pixel_learning_rate},
                {"params": [step_size], "lr": config.step_size_learning_rate},
            ],
            momentum=MOMENTUM,
        )
        return Descent(
            images,
            optimizer,
            lambda _: 1.0,
            lambda first: ((iteration,) for iteration in range(first, self.iterations)),
            lambda iteration: self._terms(images, step_size, batch, iteration),
            recordable=False,
            learned={"step_size": step_size},
        )

    def distance(
        self,
        images: Tensor,
        labels: Tensor,
        step_size: Tensor,
        expert: Trajectory,
        epoch: int,
        rng: np.random.Generator,
    ) -> Tensor:
        """Return how far a student that starts from `expert` at `epoch` ends from `expert` at `epoch` + M, a scalar.

        The student trains on `images` [m + n, C, H, W], normalised floats, with `labels` int64 [m + n].
        """
        config = self.config
        start, target = self._parameters(expert, epoch), self._parameters(expert, epoch + config.span)
        reached = leaves(start)
        together = min(config.batch_size or len(labels), len(labels))
        for positions in _shuffled(len(labels), together, config.steps, rng):
            warp = training_warp(len(positions), images.shape[-1], config.crop, config.flip, rng, images.device)
            chosen = upload(positions, images.device)
            reached, _ = sgd_step(
                self.network, reached, warp(images[chosen]), labels[chosen], step_size, differentiable=True
            )
        return trajectory_distance(reached, start, target)

    def _terms(self, images: Tensor, step_size: Tensor, batch: Batch, iteration: int) -> Terms:
        labels = torch.cat([self.earlier[1], batch.labels])
        rng = host_rng(*batch.stream, "trajectory", iteration)
        expert = self.experts[int(rng.integers(len(self.experts)))]
        epoch = int(rng.integers(self.config.start_epochs))
        seen = torch.cat([self.earlier[0], images])
        distance = self.distance(seen, labels, step_size, expert, epoch, rng)
        if not bool(torch.isfinite(distance)):
            raise ConfigError(
                f"Trajectory matching diverged at iteration {iteration}, where the step size was "
                f"{float(step_size.detach()):.3g}. Lower synthesis.mtt.pixel_learning_rate, "
                "synthesis.mtt.step_size_learning_rate or synthesis.mtt.step_size."
            )
        return {"trajectory": distance}

    def _parameters(self, expert: Trajectory, epoch: int) -> dict[str, Tensor]:
        return {name: value.to(self.runtime.device) for name, value in expert.at(epoch).items()}


def _shuffled(count: int, together: int, batches: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Yield `batches` groups of at most `together` positions: pass after pass over all, each pass in a new order."""
    waiting: list[Tensor] = []
    for _ in range(batches):
        if not waiting:
            waiting = list(torch.split(torch.from_numpy(rng.permutation(count)), together))
        yield waiting.pop(0)
