"""A teacher trained by nothing but PyTorch, to see that ours is not worse by a fault of ours.

    python benchmarks/plain_teacher.py cifar10 [--seed 0] [--epochs 5]

A ConvNet-3 of width 64 on a Parquet set of 32 px (`train-*.parquet`, `test-*.parquet`, columns `img` and `label`), with
what the CIFAR-10 ConvNet recipes' teachers have: zero-padded crops and flips, SGD with momentum, one cosine to 0. Of
this package nothing is used.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

WIDTH, BATCH = 64, 64


def main() -> None:
    """Train; print the test accuracy after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    images, labels = read(options.source, "train")
    test_images, test_labels = read(options.source, "test")
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    images, test_images = pad((images - mean) / std, (4, 4, 4, 4)), (test_images - mean) / std
    network = nn.Sequential(*block(3), *block(WIDTH), *block(WIDTH), nn.Flatten(), nn.Linear(16 * WIDTH, 10))
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    steps = len(labels) // BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * steps)
    for epoch in range(options.epochs):
        network.train()
        for chosen in torch.randperm(len(labels))[: steps * BATCH].split(BATCH):
            loss = cross_entropy(network(augmented(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            answers = torch.cat([network(part).argmax(1) for part in test_images.split(500)])
        print(f"epoch {epoch + 1}: {100 * (answers == test_labels).float().mean():.2f} %", flush=True)


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images, float32 [n, 3, H, W] in [0, 1], and labels."""
    (path,) = folder.glob(f"{split}-*.parquet")
    table = pq.read_table(path)
    rows = (Image.open(io.BytesIO(row["bytes"])).convert("RGB") for row in table.column("img").to_pylist())
    pixels = torch.from_numpy(np.stack([np.asarray(row) for row in rows]))
    return pixels.permute(0, 3, 1, 2).float() / 255, torch.tensor(table.column("label").to_pylist())


def block(inputs: int) -> list[nn.Module]:
    """Return one level of a ConvNet."""
    return [nn.Conv2d(inputs, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.AvgPool2d(2)]


def augmented(padded: Tensor) -> Tensor:
    """Return crops of 32 px from images of 40, half of them mirrored."""
    places = torch.randint(0, 9, (len(padded), 2)).tolist()
    crops = [image[:, top : top + 32, left : left + 32] for image, (top, left) in zip(padded, places, strict=True)]
    mirrored = torch.rand(len(padded)) < 0.5
    return torch.stack([crop.flip(2) if flip else crop for crop, flip in zip(crops, mirrored.tolist(), strict=True)])


if __name__ == "__main__":
    main()
