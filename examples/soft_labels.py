"""Read the soft labels of an export with PyTorch, torchvision and safetensors alone (docs/exchange.md)."""

import json
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms.v2.functional import resized_crop


def soft_batches(folder: Path, images: Tensor, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of `epochs` epochs: inputs float [b, C, H, W], the teacher's logits float [b, K].

    `images` float [n, C, H, W], in the order in which the export's loader lists them; any normalisation will do. If
    fewer epochs have labels, they start again from the first, as they did for the networks of the run.
    """
    settings = json.loads((folder / "labels.json").read_text())
    for name in cycle(settings["files"]):
        if epochs <= 0:
            return
        stored = load_file(folder / name)
        for e in range(min(len(stored["logits"]), epochs)):
            inputs = replay(images, {key: tensor[e] for key, tensor in stored.items()})
            for start, stop in settings["batches"]:
                yield inputs[start:stop], stored["logits"][e, start:stop].float()
        epochs -= len(stored["logits"])


def replay(images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
    """Crop, mirror and mix the images of one epoch as they were when the teacher saw them."""
    size = list(images.shape[-2:])
    rows = []
    for i, box, flip in zip(drawn["order"].tolist(), drawn["crop"].tolist(), drawn["flip"].tolist(), strict=True):
        crop = resized_crop(images[i], *box, size, antialias=False)
        rows.append(crop.flip(-1) if flip else crop)
    single = torch.stack(rows)
    mixed = single.clone()
    for r, (top, left, bottom, right) in enumerate(drawn["box"].tolist()):
        own = single[r, :, top:bottom, left:right]
        other = single[drawn["partner"][r], :, top:bottom, left:right]
        mixed[r, :, top:bottom, left:right] = drawn["keep"][r] * own + (1 - drawn["keep"][r]) * other
    return mixed
