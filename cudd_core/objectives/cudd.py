"""CUDD's objective: Eq. 6 on one batch at a time, under random views, by Adam."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cudd_core.compute import optimizers
from cudd_core.compute.gpu.kernels import gpu_kernels
from cudd_core.compute.lanes import aside
from cudd_core.compute.runtime import Runtime
from cudd_core.data.augment import Warp, annealed_scale, resized_crop_warp
from cudd_core.losses.adversarial import adversarial
from cudd_core.losses.alignment import alignment
from cudd_core.losses.bn_alignment import Statistics, bn_alignment
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.committee import Committee, agreed
from cudd_core.models.features import HeadInput
from cudd_core.objectives.batches import batch_positions
from cudd_core.objectives.configuration import SynthesisConfig
from cudd_core.objectives.interface import Batch, Descent, Terms
from cudd_core.seeding import host_rng, torch_rng
from cudd_core.training import cosine

_DRAWN_TOGETHER = 64
"""Views drawn at a time, which decides what is drawn: changing it changes every synthetic image."""


class CuddObjective:
    """L_ce + r_bn·L_bn (teachers) + α_reg·L_reg (originals) + α_adv·L_adv (student).

    With several teachers, L_ce, L_bn and L_reg on features are means of what each teacher alone would give. Whether an
    image counts in L_adv is decided by all of them together, as for labels: by the mean of their logits.

    Terms of weight 0 are not computed, and neither are passes that only they would need. Hooks on the teachers live as
    long as `stack`.

    The target of L_bn is each teacher's running statistics or, if given, `pools`: one for each teacher, with one pair
    per layer.

    Raises:
        ModelError: a teacher lacks the layers that a term needs; the message gives its name in the committee.
    """

    def __init__(
        self,
        teachers: Committee,
        student: nn.Module | None,
        config: SynthesisConfig,
        runtime: Runtime,
        stack: ExitStack,
        pools: Sequence[Statistics] = (),
    ) -> None:
        self.teachers, self.config, self.runtime = teachers, config, runtime
        self.iterations, self.log_every = config.iterations, config.log_every
        self.student = student if config.weight_adv > 0 else None
        on_gpu = runtime.device.type == "cuda"
        self._views, self._losses = (gpu_kernels(name) if on_gpu else None for name in ("warp", "losses"))
        self.statistics: list[BatchNormInputs] = []
        self.features: list[HeadInput] = []
        for member, name in zip(teachers.members, teachers.names, strict=True):
            if config.weight_bn > 0:
                self.statistics.append(stack.enter_context(BatchNormInputs(member, name)))
            if config.weight_reg > 0 and config.regularization == "feature":
                self.features.append(
                    stack.enter_context(HeadInput(member, name, "Set synthesis.regularization=pixel."))
                )
        adversarial_asks = self.student is not None and config.teacher_correct_only
        self.asks_teachers = bool(config.weight_ce > 0 or self.statistics or self.features or adversarial_asks)
        pooled = [[(m.to(runtime.device), v.to(runtime.device)) for m, v in pool] for pool in pools]
        self.alignments = [self._alignment(target) for target in pooled or [each.running for each in self.statistics]]

    def _alignment(self, target: Statistics) -> Callable[[Statistics], Tensor]:
        """Return L_bn of one teacher as a function of the batch's statistics."""
        factor = self.config.first_bn_factor
        if self._losses is not None:
            return self._losses.BatchNormAlignment(target, factor)  # type: ignore[no-any-return]
        return lambda batch: bn_alignment(batch, target, factor)

    def batches(self, num_slices: int, num_classes: int) -> Iterator[Tensor]:
        """Yield positions of `batch_size` images, of different classes as far as possible."""
        return batch_positions(num_slices, num_classes, self.config.batch_size)

    def descent(self, batch: Batch) -> Descent:
        """Start S_j from T_j (or noise), then use Adam with cosine decay."""
        config, start = self.config, batch.originals
        if config.init == "noise":
            noise = torch.randn(start.shape, generator=torch_rng(*batch.stream, "noise"))
            images = self.runtime.images(noise)
        else:
            images = start.clone(memory_format=torch.channels_last)
        images.requires_grad_()
        optimizer = optimizers.make(
            torch.optim.Adam,
            [images],
            config.learning_rate,
            betas=(0.5, 0.9),
            eps=1e-8,
            weight_decay=config.weight_decay,
        )

        def terms(rows: Tensor, columns: Tensor) -> Terms:
            return self._terms_of_a_view(Warp(rows, columns), images, batch)

        return Descent(
            images,
            optimizer,
            lambda iteration: cosine(1.0, iteration, config.iterations),
            lambda first: islice(self._warps(batch, images), first, None),
            terms,
            recordable=True,
        )

    def _terms_of_a_view(self, warp: Warp, images: Tensor, batch: Batch) -> Terms:
        def view(values: Tensor) -> Tensor:
            return warp(values).contiguous(memory_format=torch.channels_last)

        kernels, config = self._views, self.config
        if kernels is None or images.shape[-1] > kernels.LARGEST:
            return self.terms(view(images), view(batch.originals) if config.weight_reg > 0 else None, batch.labels)
        # The gradients of several teachers are summed in this type.
        exact = self.runtime.config.amp == "off" or len(self.teachers.members) > 1
        dtype = torch.float32 if exact else torch.bfloat16
        synthetic, for_student, error = kernels.warp(images, batch.originals, warp.rows, warp.columns, dtype)
        originals = view(batch.originals) if self.features else None
        return self.terms(synthetic, originals, batch.labels, for_student, error)

    def terms(
        self,
        synthetic: Tensor,
        originals: Tensor | None,
        labels: Tensor,
        for_student: Tensor | None = None,
        error: Tensor | None = None,
    ) -> Terms:
        """Return the weighted terms of augmented, normalised images [n, C, H, W]. Only L_reg needs the originals.

        `for_student`: the same images once more; `error`: L_reg in pixels, if it is known.
        """
        config, student = self.config, self.student
        terms: dict[str, Tensor] = {}
        if student is not None:
            seen = synthetic if for_student is None else for_student
            student_logits = aside(lambda: self._seen_by(student, seen), seen)
        if self.features:
            assert originals is not None
            with torch.no_grad():
                self._seen_by(self.teachers, originals)
            target_features = [each.collect() for each in self.features]
        answers = None
        if self.asks_teachers:
            with self.runtime.autocast():
                answers = self.teachers.answers(synthetic)
        if config.weight_ce > 0:
            assert answers is not None
            terms["ce"] = config.weight_ce * self._cross_entropy(answers, labels)
        if self.statistics:
            terms["bn"] = config.weight_bn * _mean(
                align(each.collect()) for each, align in zip(self.statistics, self.alignments, strict=True)
            )
        if self.features:
            terms["reg"] = config.weight_reg * _mean(
                alignment(each.collect(), target) for each, target in zip(self.features, target_features, strict=True)
            )
        elif config.weight_reg > 0:
            if error is None:
                assert originals is not None
                error = alignment(synthetic, originals)
            terms["reg"] = config.weight_reg * error
        if student is not None:
            judges = answers if config.teacher_correct_only else None
            terms["adv"] = config.weight_adv * self._adversarial(student_logits(), labels, judges)
        return terms

    def _seen_by(self, network: nn.Module, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            logits: Tensor = network(images)
        return logits

    def _cross_entropy(self, answers: Tensor, labels: Tensor) -> Tensor:
        if self._losses is not None:
            return self._losses.cross_entropy(answers, labels)  # type: ignore[no-any-return]
        # All teachers see the same number of images, so the mean over all answers is that of the teachers' means.
        return cross_entropy(answers.flatten(0, 1), labels.repeat(len(answers)))

    def _adversarial(self, student_logits: Tensor, labels: Tensor, judges: Tensor | None) -> Tensor:
        if self._losses is not None:
            return self._losses.adversarial(student_logits, labels, judges)  # type: ignore[no-any-return]
        right = None if judges is None else agreed(judges).argmax(1) == labels
        return adversarial(student_logits.float(), labels, right)

    def _warps(self, batch: Batch, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the matrices of each iteration's augmentation: one crop for the batch or one per image."""
        config, size = self.config, images.shape[-1]
        rng = host_rng(*batch.stream, "warp")
        each = 1 if config.crops == "batch" else len(batch.labels)
        chunk = max(1, _DRAWN_TOGETHER // each)  # matrices of 224 px are 400 kB per view
        for first in range(0, config.iterations, chunk):
            count = min(chunk, config.iterations - first)
            iterations = np.arange(first, first + count).repeat(each)
            scale = annealed_scale(config.crop_scale, config.crop_anneal, iterations, config.iterations)
            warps = resized_crop_warp(count * each, size, scale, config.flip, rng, config.jitter, images.device)
            yield from zip(torch.split(warps.rows, each), torch.split(warps.columns, each), strict=True)


def _mean(values: Iterable[Tensor]) -> Tensor:
    first, *others = values
    return torch.stack([first, *others]).mean() if others else first
