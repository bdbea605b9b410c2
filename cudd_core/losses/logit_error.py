"""Distillation on logits: their mean squared error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import mse_loss


def logit_error(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return the mean over batch and classes of (student − teacher)², a scalar. Logits [n, K]; the teacher's any float.

    For T → ∞, KL between tempered softmaxes tends to this, up to a factor, if each row's mean is subtracted (Hinton et
    al., 2015); here rows keep their means. EDC (Shao et al., NeurIPS 2024) trains evaluated networks with it.
    """
    # torch 2.11 has no gradient where the two differ in type.
    common = torch.promote_types(student_logits.dtype, torch.float32)
    return mse_loss(student_logits.to(common), teacher_logits.to(common))
