"""Cross-entropy with both classes of images that were mixed from two."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def mixed_label(logits: Tensor, labels: Tensor, partners: Tensor, share: Tensor) -> Tensor:
    """Return share · CE(labels) + (1 − share) · CE(partners), mean over the batch, a scalar.

    `logits` [n, K]; `labels`, `partners` int64 [n]: the classes of an image's own pixels and of those mixed in;
    `share` in [0, 1], a scalar: the share of its own pixels. The same as cross-entropy with the target distribution
    share · onehot(labels) + (1 − share) · onehot(partners).
    """
    own, mixed_in = share.to(logits.dtype), (1 - share).to(logits.dtype)
    return own * cross_entropy(logits, labels) + mixed_in * cross_entropy(logits, partners)
