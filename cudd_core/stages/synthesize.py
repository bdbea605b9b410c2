"""Synthesize: minimise Eq. 6 over the pixels of S_j."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from cudd_core.configuration import Configuration
from cudd_core.data.augment import CropScale, Normalizer, Warp, resized_crop_warp
from cudd_core.data.source import ImageSplit
from cudd_core.losses.adversarial import adversarial
from cudd_core.losses.alignment import alignment
from cudd_core.losses.bn_alignment import bn_alignment
from cudd_core.models.batchnorm import BatchNormInputs
from cudd_core.models.features import HeadInput
from cudd_core.models.registry import restore_network
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkRecord, Selection, Shard
from cudd_core.runtime import Runtime
from cudd_core.seeding import host_rng, torch_rng
from cudd_core.training import cosine

VERSION = 1


class SynthesisConfig(Configuration):
    """Eq. 6 and its optimiser; defaults are the paper's Table XII for CIFAR-10."""

    enabled: bool = Field(True, description="Off: keep T_j as it is (selection only, random real images).")
    init: Literal["real", "noise"] = Field("real", description="S_j ← T_j, or standard normal noise (SRe2L).")
    iterations: int = Field(1000, ge=1, description="Adam steps of each batch.")
    batch_size: int = Field(10, ge=1, description="Images optimised together; one per class until classes run out.")
    learning_rate: float = Field(0.25, gt=0, description="Adam, β 0.5/0.9, ε 1e-8, cosine to 0.")
    weight_decay: float = Field(0.0, ge=0, description="Adam's L2 term (Table XII says 1e-4).")
    weight_ce: float = Field(1.0, ge=0, description="Weight of L_ce.")
    weight_bn: float = Field(0.01, ge=0, description="Weight of L_bn.")
    first_bn_factor: float = Field(10.0, ge=0, description="Extra factor of L_bn at the first layer.")
    weight_reg: float = Field(1.0, ge=0, description="α_reg.")
    weight_adv: float = Field(1.0, ge=0, description="α_adv; the term is absent in the first curriculum.")
    regularization: Literal["pixel", "feature"] = Field("pixel", description="Space of L_reg (Table VI).")
    teacher_correct_only: bool = Field(True, description="L_adv only where the teacher is right (Table X).")
    crop_scale: CropScale = Field((0.08, 1.0), description="Area range of the random resized crop.")
    crops: Literal["batch", "image"] = Field("batch", description="One crop, flip and roll per batch or per image.")
    flip: bool = Field(True, description="Mirror half of the augmentations (off for digits and text).")
    jitter: int = Field(4, ge=0, description="Largest circular roll in pixels, each axis.")
    log_every: int = Field(50, ge=1, description="Iterations between logged losses.")

    @model_validator(mode="after")
    def _some_term_has_weight(self) -> SynthesisConfig:
        if self.enabled and not (self.weight_ce or self.weight_bn or self.weight_reg):
            raise ValueError("weight_ce, weight_bn and weight_reg are all 0: nothing is left to minimise")
        return self


class Objective:
    """Eq. 6 for one batch: L_ce + r_bn·L_bn (teacher) + α_reg·L_reg (originals) + α_adv·L_adv (student).

    Terms of weight 0 are not computed, and neither are the passes that only they would need.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module | None,
        config: SynthesisConfig,
        runtime: Runtime,
        teacher_name: str,
        stack: ExitStack,
    ) -> None:
        self.teacher, self.config, self.runtime = teacher, config, runtime
        self.student = student if config.weight_adv > 0 else None
        uses_features = config.weight_reg > 0 and config.regularization == "feature"
        self.statistics = stack.enter_context(BatchNormInputs(teacher, teacher_name)) if config.weight_bn > 0 else None
        self.features = stack.enter_context(HeadInput(teacher, teacher_name)) if uses_features else None

    def __call__(self, synthetic: Tensor, originals: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return the weighted terms, scalars by name, of augmented, normalised images [n, C, H, W]."""
        config = self.config
        terms: dict[str, Tensor] = {}
        target_features = None
        if self.features is not None:
            with torch.no_grad(), self.runtime.autocast():
                self.teacher(originals)
            target_features = self.features.collect()
        with self.runtime.autocast():
            logits = self.teacher(synthetic)
        logits = logits.float()
        if config.weight_ce > 0:
            terms["ce"] = config.weight_ce * cross_entropy(logits, labels)
        if self.statistics is not None:
            alignment_to_data = bn_alignment(self.statistics.collect(), self.statistics.running, config.first_bn_factor)
            terms["bn"] = config.weight_bn * alignment_to_data
        if self.features is not None and target_features is not None:
            terms["reg"] = config.weight_reg * alignment(self.features.collect(), target_features)
        elif config.weight_reg > 0:
            terms["reg"] = config.weight_reg * alignment(synthetic, originals)
        if self.student is not None:
            with self.runtime.autocast():
                student_logits = self.student(synthetic)
            right = logits.argmax(1) == labels if config.teacher_correct_only else None
            terms["adv"] = config.weight_adv * adversarial(student_logits.float(), labels, right)
        return terms


def synthesize(
    teacher: NetworkRecord,
    student: NetworkRecord | None,
    selection: Selection,
    slices: range,
    split: ImageSplit,
    curriculum: int,
    config: SynthesisConfig,
    seed: int,
    runtime: Runtime,
    *,
    progress: Progress = silent,
) -> Shard:
    """Make the synthetic images of `slices` (numbers of the whole run) for the classes of `selection`.

    S_j starts as T_j (or noise), is kept as float in the teacher's normalised space while Adam minimises Eq. 6, is
    clamped to valid pixels after every step, and its last iterate is rounded to uint8. With `config.enabled` off the
    originals are returned as they are.
    """
    local = slice(slices.start - selection.first_slice, slices.stop - selection.first_slice)
    sources = selection.indices[local].flatten()
    labels = selection.classes.repeat(len(slices))
    numbers = torch.arange(slices.start, slices.stop).repeat_interleave(len(selection.classes))
    originals = split.images(sources)
    images, history = originals, []
    if config.enabled:
        normalizer = Normalizer(teacher.spec.mean, teacher.spec.std, runtime.device)
        with ExitStack() as stack:
            teacher_network = runtime.network(restore_network(teacher))
            student_network = runtime.network(restore_network(student)) if student is not None else None
            objective = Objective(teacher_network, student_network, config, runtime, teacher.spec.arch, stack)
            images = torch.empty_like(originals)
            batches = list(batch_positions(len(slices), len(selection.classes), config.batch_size))
            for done, positions in enumerate(batches):
                stream = ("synthesize", int(numbers[positions[0]]), int(labels[positions[0]]))

                def report(iteration: int, total: int, losses: Mapping[str, float], done: int = done) -> None:
                    progress(done * total + iteration, len(batches) * total, losses)

                images[positions], rows = _optimize(
                    objective,
                    originals[positions],
                    labels[positions],
                    normalizer,
                    config,
                    (seed, *stream),
                    runtime,
                    report,
                )
                history += [{"slice": float(stream[1]), "class": float(stream[2]), **row} for row in rows]
    uses_originals = not config.enabled or config.init == "real" or config.weight_reg > 0
    return Shard(
        images=images,
        labels=labels,
        slices=numbers,
        sources=sources if uses_originals else torch.full_like(sources, -1),
        curriculum=curriculum,
        history=tuple(history),
    )


def batch_positions(num_slices: int, num_classes: int, batch_size: int) -> Iterator[Tensor]:
    """Yield int64 positions (slice-major) of the images that are optimised together.

    One image per class while classes last: a slice is cut into batches of `batch_size` classes, or, if a whole slice
    is smaller, as many whole slices as fit are joined. A batch depends on the configuration alone.
    """
    if batch_size >= num_classes:
        joined = batch_size // num_classes
        for first in range(0, num_slices, joined):
            yield torch.arange(first * num_classes, min(first + joined, num_slices) * num_classes)
        return
    for start in range(0, num_slices * num_classes, num_classes):
        for first in range(0, num_classes, batch_size):
            yield torch.arange(start + first, start + min(first + batch_size, num_classes))


def _optimize(
    objective: Objective,
    originals: Tensor,
    labels: Tensor,
    normalizer: Normalizer,
    config: SynthesisConfig,
    stream: tuple[int, str, int, int],
    runtime: Runtime,
    report: Progress,
) -> tuple[Tensor, list[dict[str, float]]]:
    """Minimise Eq. 6 over one batch; return uint8 images [n, C, H, W] and the logged losses."""
    start = runtime.images(normalizer(originals))
    if config.init == "noise":
        noise = torch.randn(originals.shape, generator=torch_rng(*stream, "noise"))
        images = runtime.images(noise).contiguous(memory_format=torch.channels_last)
    else:
        images = start.clone(memory_format=torch.channels_last)
    images.requires_grad_()
    labels = labels.to(runtime.device)
    optimizer = torch.optim.Adam(
        [images], lr=config.learning_rate, betas=(0.5, 0.9), eps=1e-8, weight_decay=config.weight_decay
    )
    logged: list[tuple[int, dict[str, Tensor]]] = []
    for iteration, warp in enumerate(_warps(config, len(labels), originals.shape[-1], host_rng(*stream, "warp"))):
        optimizer.param_groups[0]["lr"] = cosine(config.learning_rate, iteration, config.iterations)
        synthetic = warp(images).contiguous(memory_format=torch.channels_last)
        terms = objective(synthetic, warp(start).contiguous(memory_format=torch.channels_last), labels)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            normalizer.clamp_(images)
        if iteration % config.log_every == 0 or iteration + 1 == config.iterations:
            logged.append((iteration, {name: term.detach() for name, term in terms.items()}))
            report(iteration + 1, config.iterations, {})
    rows = [{"iteration": float(i), **{name: float(value) for name, value in t.items()}} for i, t in logged]
    return normalizer.to_uint8(images.detach()), rows


def _warps(config: SynthesisConfig, n: int, size: int, rng: np.random.Generator, chunk: int = 64) -> Iterator[Warp]:
    """Yield one augmentation an iteration, drawn a chunk at a time: one crop for the batch, or one per image."""
    each = 1 if config.crops == "batch" else n
    for first in range(0, config.iterations, chunk):
        count = min(chunk, config.iterations - first)
        warps = resized_crop_warp(count * each, size, config.crop_scale, config.flip, rng, config.jitter)
        for i in range(count):
            part = slice(i * each, (i + 1) * each)
            yield Warp(warps.rows[part], warps.columns[part])
