"""Soft labels for other software: logits, and in numbers every crop, flip and mixing that they belong to.

A run stores only logits, since its own code can redraw the augmentation from (seed, epoch, step). Here the draws are
written out, so that a plain PyTorch script can replay them. docs/exchange.md says how.

    soft_labels/labels.json                   settings that hold for all epochs
    soft_labels/epochs-00000-00099.safetensors
        logits   float16 [E, n, K]     row r of an epoch belongs to the r-th image of that epoch
        order    int32   [E, n]        which image that is, as the export's loader counts them
        crop     int16   [E, n, 4]     top, left, height, width in pixels of its crop, which is resized to full size
        flip     uint8   [E, n]        1: mirrored after the crop
        partner  int32   [E, n]        the row of the same epoch that it is mixed with
        box      int16   [E, n, 4]     top, left, bottom, right of the mixed region; empty where nothing is mixed
        keep     float32 [E, n]        weight of its own pixels in that region: 0 for CutMix, λ for mixup
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cudd_core.data.replay import batch_bounds, draw_batches, epoch_order
from cudd_core.exchange.bundle import Bundle, Written
from cudd_core.exchange.manifest import LABELS_FOLDER
from cudd_core.tensor_files import write_tensors

LABELS_FILE = "labels.json"


def write_soft_labels(bundle: Bundle, written: Written, folder: Path) -> None:
    """Write the labels of all epochs, shard by shard. Needs the bundle's teacher and labelling."""
    teacher, labelling = bundle.teacher, bundle.labelling
    assert teacher is not None and labelling is not None, "soft labels come with their teacher"
    place = folder / LABELS_FOLDER
    place.mkdir()
    # position[i]: where the loader lists image i of the set.
    position = torch.empty_like(written.order)
    position[written.order] = torch.arange(len(position))
    epochs = 0
    files = []
    for shard in labelling.shards:
        first, last = shard.first_epoch, shard.first_epoch + len(shard.logits) - 1
        drawn = [_draws(bundle, epoch, position) for epoch in range(first, last + 1)]
        tensors = {name: torch.stack([each[name] for each in drawn]) for name in drawn[0]}
        files.append(f"epochs-{first:05d}-{last:05d}.safetensors")
        write_tensors({"logits": shard.logits, **tensors}, place / files[-1])
        epochs += len(shard.logits)
    document = {
        "files": files,
        "epochs": epochs,
        "images": len(position),
        "classes": teacher.spec.num_classes,
        "image_size": teacher.spec.image_size,
        "mean": teacher.spec.mean,
        "std": teacher.spec.std,
        "batches": batch_bounds(len(position), labelling.batch_size),
        "batch_size": labelling.batch_size,
        "temperature": labelling.temperature,
        "augmentation": labelling.replay.model_dump(mode="json"),
        "seed": labelling.seed,
        "teacher": teacher.spec.arch,
        **({"other_teachers": labelling.other_teachers} if labelling.other_teachers else {}),
    }
    (place / LABELS_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _draws(bundle: Bundle, epoch: int, position: Tensor) -> dict[str, Tensor]:
    """Return the draws that an epoch's batches were made with, one row per image."""
    labelling = bundle.labelling
    assert labelling is not None
    n, size = len(position), bundle.synthetic.images.shape[-1]
    bounds = enumerate(batch_bounds(n, labelling.batch_size))
    batches = tuple((epoch, step, stop - start) for step, (start, stop) in bounds)
    crops, mixes = draw_batches(labelling.replay, labelling.seed, batches, size)
    partner, box, keep = np.arange(n), np.zeros((n, 4), dtype=np.int64), np.ones(n)
    if mixes is not None:
        partner, box, keep = mixes.partner, mixes.boxes[mixes.batch], mixes.keep[mixes.batch]
    order = position[epoch_order(labelling.seed, epoch, n)].int()
    return {
        "order": order,
        "crop": torch.from_numpy(crops.boxes).short(),
        "flip": torch.from_numpy(crops.mirrored).byte(),
        "partner": torch.from_numpy(partner).int(),
        "box": torch.from_numpy(box).short(),
        "keep": torch.from_numpy(keep).float(),
    }
