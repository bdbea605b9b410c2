"""Train a network on an export with torchvision and plain PyTorch; print its accuracy on real images.

    cudd export RUN --format imagefolder --to export --soft-labels
    python examples/train_plain.py export TEST_FOLDER --epochs 300 [--soft]

TEST_FOLDER has one folder of real images a class. `--soft` trains on the teacher's labels instead of the classes.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from soft_labels import soft_batches
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import Compose, Resize, ToDtype, ToImage

words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
words.add_argument("export", type=Path)
words.add_argument("test", type=Path)
words.add_argument("--epochs", type=int, default=300)
words.add_argument("--soft", action="store_true")
words = words.parse_args()

if not (words.export / "train").is_dir():
    raise SystemExit(f"{words.export} has no folder train: this reads what `cudd export --format imagefolder` wrote.")
torch.manual_seed(0)
to_tensor = Compose([ToImage(), ToDtype(torch.float32, scale=True)])
images, labels = zip(*ImageFolder(words.export / "train", to_tensor), strict=True)
images, labels = torch.stack(images) - 0.5, torch.tensor(labels)
real = ImageFolder(words.test, Compose([to_tensor, Resize(images.shape[-2:])]))
classes = json.loads((words.export / "export.json").read_text())["classes"]  # in the order of the labels
if sorted(classes) != real.classes:
    raise SystemExit(f"{words.test} has the folders {real.classes}, the export has the classes {sorted(classes)}.")

block = [nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2)]
network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *block, nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64))
network.extend([nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, len(classes))])
optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
hard = ((images[rows], labels[rows]) for _ in range(words.epochs) for rows in torch.randperm(len(images)).split(64))
for inputs, target in soft_batches(words.export / "soft_labels", images, words.epochs) if words.soft else hard:
    answer = network(inputs)
    if words.soft:  # Hinton's temperature, which softens both
        loss = F.kl_div(F.log_softmax(answer / 20, 1), F.softmax(target / 20, 1), reduction="batchmean")
    else:
        loss = F.cross_entropy(answer, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

network.eval()
with torch.no_grad():
    right = sum(classes[network(image[None] - 0.5).argmax()] == real.classes[label] for image, label in real)
print(f"accuracy {right / len(real):.1%} on {len(real)} images, {'soft' if words.soft else 'hard'} labels")
