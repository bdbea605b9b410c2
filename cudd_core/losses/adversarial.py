"""L_adv of Eq. 7: the non-saturating loss that pushes images away from what the student already knows."""

from __future__ import annotations

import torch
from torch import Tensor


def adversarial(student_logits: Tensor, labels: Tensor, teacher_right: Tensor | None = None) -> Tensor:
    """Return −(1/N) Σ_i m_i log(1 − softmax(student_logits_i)[y_i]), a scalar.

    `student_logits` [N, K], `labels` int64 [N], `teacher_right` bool [N] (None: all). N is the size of the
    whole batch, including masked images. log(1 − p) is logsumexp over the other classes minus logsumexp over all of
    them: `log(1 − p + ε)` would lose its gradient in float32 at a margin of about 17, where the loss is needed most.
    The mask is applied to losses, not logits, so masked images get a gradient of exactly zero.
    """
    others = student_logits.scatter(1, labels[:, None], float("-inf"))
    loss = student_logits.logsumexp(1) - others.logsumexp(1)
    if teacher_right is not None:
        loss = torch.where(teacher_right, loss, torch.zeros_like(loss))
    return loss.sum() / len(labels)
