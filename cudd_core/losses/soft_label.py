"""Distillation on soft labels: KL between tempered softmaxes."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax


def soft_label(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return KL(softmax(teacher/T) ‖ softmax(student/T)), mean over the batch, without the factor T².

    Logits [n, K]; the teacher's may be float16. Zero when both agree up to a constant per row.
    """
    return kl_div(
        log_softmax(student_logits / temperature, dim=1),
        log_softmax(teacher_logits.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
