"""GPU kernels for the losses of synthesis, of which torch makes a dozen small ones each: one forward, one back.

Import this only on a machine with a GPU: Triton comes only with torch for CUDA. A program holds a row of logits. They
are of any float type, their gradients have the same, and everything is computed in float32.
"""

# No `from __future__ import annotations`: Triton reads the annotations.
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

_VALUES = 1024


def cross_entropy(answers: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of `answers` [m, n, K], m networks' logits, with `labels` int64 [n], a scalar."""
    loss: Tensor = _CrossEntropy.apply(answers, labels)
    return loss


def adversarial(student_logits: Tensor, labels: Tensor, answers: Tensor | None) -> Tensor:
    """Return `losses.adversarial.adversarial` of `student_logits` [n, K], labels int64 [n], a scalar.

    With `answers` [m, n, K], m teachers' logits, an image counts only where their mean is right.
    """
    loss: Tensor = _Adversarial.apply(student_logits, labels, None if answers is None else answers.detach())
    return loss


class BatchNormAlignment:
    """`losses.bn_alignment.bn_alignment` to a fixed target: pairs of mean and variance, float32 [c] on the GPU."""

    def __init__(self, target: Sequence[tuple[Tensor, Tensor]], first_factor: float = 1.0) -> None:
        flat = [part for pair in target for part in pair]
        device, sizes = flat[0].device, torch.tensor([len(part) for part in flat])
        weights = torch.ones(len(flat))
        weights[:2] = first_factor
        # Part p is values starts[p] … starts[p + 1] − 1; `part` says for each value which one it is in.
        starts = torch.nn.functional.pad(sizes.cumsum(0), (1, 0))
        part = torch.arange(len(flat)).repeat_interleave(sizes)
        self._target = torch.cat(flat), weights.to(device), starts.int().to(device), part.int().to(device)

    def __call__(self, batch: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the loss of a batch's statistics, a scalar."""
        loss: Tensor = _Norms.apply(torch.cat([part for pair in batch for part in pair]), *self._target)
        return loss


def check(device: torch.device) -> None:
    """Build and run the kernels."""
    logits, labels = torch.zeros(1, 1, 2, device=device, requires_grad=True), torch.zeros(1, device=device).long()
    loss = cross_entropy(logits, labels) + adversarial(logits[0], labels, logits.detach())
    (loss + BatchNormAlignment([(labels.float(), labels.float())])([(logits[0, 0, :1], logits[0, 0, 1:])])).backward()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, answers: Tensor, labels: Tensor) -> Tensor:
        answers = answers.contiguous()
        rows, classes = answers.shape[:2].numel(), answers.shape[2]
        losses, level = torch.empty(2, rows, device=answers.device).unbind()
        with torch.cuda.device_of(answers):
            _cross_entropy[(rows,)](*(answers, labels, losses, level, rows, len(labels), classes), **_row(classes))
        ctx.save_for_backward(answers, labels, level)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        answers, labels, level = ctx.saved_tensors
        rows, classes = answers.shape[:2].numel(), answers.shape[2]
        result = torch.empty_like(answers)
        with torch.cuda.device_of(answers):
            _cross_entropy_back[(rows,)](
                *(answers, labels, level, grad, result, rows, len(labels), classes), **_row(classes)
            )
        return result, None


class _Adversarial(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, answers: Tensor | None) -> Tensor:
        logits = logits.contiguous()
        rows, classes = logits.shape
        losses, level, others = torch.empty(3, rows, device=logits.device).unbind()
        members = 0 if answers is None else len(answers)
        with torch.cuda.device_of(logits):
            _adversarial[(rows,)](
                *(logits, labels, None if answers is None else answers.contiguous()),
                *(losses, level, others, rows, classes),
                MEMBERS=members,
                **_row(classes),
            )
        ctx.save_for_backward(logits, labels, level, others)
        return losses.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, level, others = ctx.saved_tensors
        rows, classes = logits.shape
        result = torch.empty_like(logits)
        with torch.cuda.device_of(logits):
            _adversarial_back[(rows,)](*(logits, labels, level, others, grad, result, rows, classes), **_row(classes))
        return result, None, None


class _Norms(torch.autograd.Function):
    """Σ_p weights[p] · ‖flat_p − target_p‖₂; the gradient at zero is taken as zero."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, target: Tensor, weights: Tensor, starts: Tensor, part: Tensor) -> Tensor:
        weighted, slopes = torch.empty(2, len(weights), device=flat.device).unbind()
        with torch.cuda.device_of(flat):
            _norms[(len(weights),)](flat, target, weights, starts, weighted, slopes, VALUES=_VALUES)
        ctx.save_for_backward(flat, target, slopes, part)
        return weighted.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        flat, target, slopes, part = ctx.saved_tensors
        result = torch.empty_like(flat)
        with torch.cuda.device_of(flat):
            _norms_back[(triton.cdiv(len(flat), _VALUES),)](
                *(flat, target, slopes, part, grad, result, len(flat)), VALUES=_VALUES
            )
        return result, None, None, None, None


def _row(classes: int) -> dict[str, int]:
    block = triton.next_power_of_2(classes)
    return {"BLOCK": block, "num_warps": max(1, min(16, block // 256))}


@triton.jit  # type: ignore[untyped-decorator]
def _logits(logits, row, classes, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return a row's logits, −∞ beyond the last."""
    k = tl.arange(0, BLOCK)
    return tl.load(logits + row.to(tl.int64) * classes + k, mask=k < classes, other=float("-inf")).to(tl.float32)


@triton.jit
def _logsumexp(values):  # type: ignore[no-untyped-def]
    highest = tl.max(values, 0)
    return highest + tl.log(tl.sum(tl.exp(values - highest), 0))


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(  # type: ignore[no-untyped-def]
    answers, labels, losses, level, rows, n, classes, BLOCK: tl.constexpr
):
    row = tl.program_id(0)
    values = _logits(answers, row, classes, BLOCK)
    own = tl.sum(tl.where(tl.arange(0, BLOCK) == tl.load(labels + row % n), values, 0.0), 0)
    whole = _logsumexp(values)
    tl.store(losses + row, (whole - own) / rows)
    tl.store(level + row, whole)


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy_back(  # type: ignore[no-untyped-def]
    answers, labels, level, grad, result, rows, n, classes, BLOCK: tl.constexpr
):
    row, k = tl.program_id(0), tl.arange(0, BLOCK)
    share = tl.exp(_logits(answers, row, classes, BLOCK) - tl.load(level + row))
    slope = share - tl.where(k == tl.load(labels + row % n), 1.0, 0.0)
    tl.store(result + row.to(tl.int64) * classes + k, slope * (tl.load(grad) / rows), mask=k < classes)


@triton.jit  # type: ignore[untyped-decorator]
def _adversarial(  # type: ignore[no-untyped-def]
    logits, labels, answers, losses, level, others, rows, classes, MEMBERS: tl.constexpr, BLOCK: tl.constexpr
):
    row, k = tl.program_id(0), tl.arange(0, BLOCK)
    label = tl.load(labels + row)
    values = _logits(logits, row, classes, BLOCK)
    whole, rest = _logsumexp(values), _logsumexp(tl.where(k == label, float("-inf"), values))
    loss = whole - rest
    if MEMBERS > 0:
        joint = _logits(answers, row, classes, BLOCK)
        for member in tl.static_range(1, MEMBERS):
            joint += _logits(answers, member * rows + row, classes, BLOCK)
        counts = tl.argmax(joint, 0, tie_break_left=True) == label
        loss = tl.where(counts, loss, 0.0)
        # Where it does not count, no class has a gradient: exp(z − ∞) is 0.
        whole, rest = tl.where(counts, whole, float("inf")), tl.where(counts, rest, float("inf"))
    tl.store(losses + row, loss / rows)
    tl.store(level + row, whole)
    tl.store(others + row, rest)


@triton.jit  # type: ignore[untyped-decorator]
def _adversarial_back(  # type: ignore[no-untyped-def]
    logits, labels, level, others, grad, result, rows, classes, BLOCK: tl.constexpr
):
    row, k = tl.program_id(0), tl.arange(0, BLOCK)
    values = _logits(logits, row, classes, BLOCK)
    share = tl.exp(values - tl.load(level + row))
    rest = tl.where(k == tl.load(labels + row), float("-inf"), values)
    slope = (share - tl.exp(rest - tl.load(others + row))) * (tl.load(grad) / rows)
    tl.store(result + row.to(tl.int64) * classes + k, slope, mask=k < classes)


@triton.jit  # type: ignore[untyped-decorator]
def _norms(flat, target, weights, starts, weighted, slopes, VALUES: tl.constexpr):  # type: ignore[no-untyped-def]
    part = tl.program_id(0)
    start, stop = tl.load(starts + part), tl.load(starts + part + 1)
    squares = tl.zeros((VALUES,), tl.float32)
    for first in range(start, stop, VALUES):
        place = first + tl.arange(0, VALUES)
        inside = place < stop
        distance = tl.load(flat + place, mask=inside, other=0.0) - tl.load(target + place, mask=inside, other=0.0)
        squares += distance * distance
    norm = tl.sqrt(tl.sum(squares, 0))
    weight = tl.load(weights + part)
    tl.store(weighted + part, weight * norm)
    tl.store(slopes + part, tl.where(norm > 0, weight / tl.where(norm > 0, norm, 1.0), 0.0))


@triton.jit  # type: ignore[untyped-decorator]
def _norms_back(flat, target, slopes, part, grad, result, total, VALUES: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0) * VALUES + tl.arange(0, VALUES)
    inside = place < total
    slope = tl.load(slopes + tl.load(part + place, mask=inside, other=0), mask=inside, other=0.0) * tl.load(grad)
    distance = tl.load(flat + place, mask=inside) - tl.load(target + place, mask=inside)
    tl.store(result + place, slope * distance, mask=inside)
