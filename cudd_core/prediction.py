"""Predictions of networks: in eval mode, without gradients, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from cudd_core.compute.runtime import Runtime
from cudd_core.data.normalizer import Normalizer
from cudd_core.data.source import ImageSplit
from cudd_core.models.features import HeadInput
from cudd_core.progress import Progress, silent
from cudd_core.records import NetworkSpec

PREDICTED_TOGETHER = 250
"""Images per batch. In eval mode, predictions for an image do not depend on the others in its batch."""

Images = Callable[[Tensor], Tensor]
"""int64 indices → normalised float images."""


def views_of(split: ImageSplit, spec: NetworkSpec, runtime: Runtime) -> Images:
    """Return a function to get a split's images as a network sees them: centre view, normalised, on the device."""
    normalizer = Normalizer.of(spec, runtime.device)
    return lambda indices: normalizer(split.images(indices))


def logits_of(
    network: nn.Module, images: Images, indices: Tensor, runtime: Runtime, *, progress: Progress = silent
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of images(indices) batch by batch, each with the slice of `indices` that it belongs to."""
    network = runtime.network(network).eval()
    for start in range(0, len(indices), PREDICTED_TOGETHER):
        places = slice(start, min(start + PREDICTED_TOGETHER, len(indices)))
        with torch.no_grad(), runtime.autocast():
            logits = network(runtime.images(images(indices[places])))
        yield places, logits
        progress(places.stop, len(indices), {})


def predict(
    network: nn.Module, images: Images, indices: Tensor, runtime: Runtime, *, progress: Progress = silent
) -> Tensor:
    """Return the arg-max class of images(indices), int32 [n] on the host."""
    # One tensor for all: small ones between the activations of successive batches would keep glibc from reusing that
    # memory (docs/performance.md), 40 MB for every thousand images.
    answers = torch.empty(len(indices), dtype=torch.int32, device=runtime.device)
    for places, logits in logits_of(network, images, indices, runtime, progress=progress):
        answers[places] = logits.argmax(1)
    return answers.cpu()


def head_inputs(
    network: nn.Module, name: str, images: Images, indices: Tensor, runtime: Runtime, *, progress: Progress = silent
) -> Tensor:
    """Return the inputs of the classifier's head for images(indices), float32 [n, d] on the host.

    Raises:
        ModelError: the network, called `name` in the message, has no linear head.
    """
    found = torch.empty(0, 0)
    with HeadInput(network, name) as head:
        for places, _ in logits_of(network, images, indices, runtime, progress=progress):
            features = head.collect()
            if places.start == 0:
                found = torch.empty(len(indices), features.shape[1])  # one tensor for all, as in `predict`
            found[places] = features
    return found
