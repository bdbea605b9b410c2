"""L_reg: synthetic images stay near the originals they began as, in pixels or in the teacher's features (Table VI)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss


def alignment(synthetic: Tensor, originals: Tensor) -> Tensor:
    """Return the mean squared error of two tensors of one shape: augmented pixels or pooled features."""
    return mse_loss(synthetic, originals)
