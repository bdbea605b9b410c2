"""L_reg: keeps synthetic images near the originals they started as, in pixels or the teacher's features (Table VI)."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import mse_loss


def alignment(synthetic: Tensor, originals: Tensor) -> Tensor:
    """Return the mean squared error of two tensors of the same shape: augmented pixels, or features.

    Features are the input of the teacher's last linear layer (`models.features`), float32 [n, d].
    """
    return mse_loss(synthetic, originals)
