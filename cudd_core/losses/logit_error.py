"""Distillation on logits: their mean squared error."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss


def logit_error(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean over batch and classes of (student − teacher)², a scalar. Logits [n, K]; the teacher's any float.

    For T → ∞, KL between tempered softmaxes tends to this, up to a factor, if each row's mean is subtracted (Hinton et
    al., 2015); here rows keep their means. EDC (Shao et al., NeurIPS 2024) trains evaluated networks with it.
    """
    return mse_loss(student_logits, teacher_logits.float())
