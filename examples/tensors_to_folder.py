"""Turn the tensors of a published distilled set into a folder of PNG files that `cudd evaluate` and ImageFolder read.

    python examples/tensors_to_folder.py images_best.pt labels_best.pt --to FOLDER
        --mean 0.4914,0.4822,0.4465 --std 0.2023,0.1994,0.2010
    cudd evaluate FOLDER --recipe RECIPE

Use it for sets published as `.pt` files: images float [N, C, H, W] as the networks saw them, labels [N], or [N, K] if
they are soft. MTT and DATM save two files; DC and DM one, `res_….pt`, with a pair for every repetition (`--key data.0`
takes the first). Needs PyTorch, NumPy and Pillow alone. No program in the files is run.

`--mean` and `--std` undo the normalisation. They are the authors': DC, MTT and DATM use the numbers above for CIFAR-10,
0,0,0 and 1,1,1 for images that are in [0, 1] already. ZCA-whitened images cannot be undone without the authors' matrix.
With `--zca`, MTT and DATM save whitened images as images_*.pt and the same ones transformed back, in [0, 1], as
images_zca_*.pt: take these. They are still not what was optimised, so expect lower accuracies than published.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from plain_tensors import read_plain
from torch import Tensor

MOST_OUTSIDE = 0.2  # share of values outside [0, 1]; normalised noise: 0.014, whitened CIFAR-10 taken as [0, 1]: 0.5
LEAST_CONTRAST = 0.1  # deviation of all values; CIFAR-10: 0.25, whitened CIFAR-10 taken as normalised: 0.05
EVEN = 0.1  # deviation of the images' means as a share of that of all values; CIFAR-10: 0.5, whitened: 0.07


INSTEAD = (
    "open it where it was made, save its tensors alone with torch.save((images, labels), 'set.pt'), and give that."
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file by their place in it, such as `data.0.1`; no code in it is run."""
    return _tensors_in(read_plain(path, INSTEAD), "")


def _tensors_in(value: Any, place: str) -> dict[str, Tensor]:
    if isinstance(value, Tensor):
        return {place: value.detach()}
    entries = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    found: dict[str, Tensor] = {}
    for name, entry in entries:
        found |= _tensors_in(entry, f"{place}.{name}" if place else str(name))
    return found


def choose(found: dict[str, Tensor], key: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the only tensor of images below `key`, and all other tensors there."""
    below = {place: each for place, each in found.items() if not key or f"{place}.".startswith(f"{key}.")}
    images = [place for place, each in below.items() if each.is_floating_point() and each.ndim == 4]
    images = [place for place in images if below[place].shape[1] in (1, 3) and len(below[place])]
    if len(images) != 1:
        raise SystemExit(
            f"One float tensor [N, 3, H, W] of images is needed; there are {len(images)} in: {_contents(found)}."
            + (" Choose one, or the entry that it lies in, with --key." if images else "")
        )
    chosen = below.pop(images[0])
    return chosen.float(), below


def choose_labels(found: dict[str, Tensor], n: int) -> Tensor:
    """Return the labels of n images: hard ones, int64 [n], if there are any, otherwise soft ones, float [n, K]."""
    fitting = [each.flatten() if each.numel() == n else each for each in found.values() if each.shape[:1] == (n,)]
    hard = [each.long() for each in fitting if each.ndim == 1 and bool((each == each.long()).all())]
    soft = [each.float() for each in fitting if each.ndim == 2]
    if len(hard or soft) != 1:
        raise SystemExit(
            f"One tensor of labels, [{n}] or [{n}, K], is needed; there are {len(hard or soft)} in: {_contents(found)}."
        )
    return (hard or soft)[0]


def _contents(found: dict[str, Tensor]) -> str:
    words = [f"{place or 'a tensor'} {list(each.shape)} {str(each.dtype)[6:]}" for place, each in found.items()]
    return ", ".join(words[:8]) + (", …" if len(words) > 8 else "") if words else "no tensors"


def hard_labels(labels: Tensor) -> tuple[Tensor, int]:
    """Return labels int64 [n] and the number of classes; for soft labels, print what gets lost."""
    if labels.ndim == 1:
        if int(labels.min()) < 0:
            raise SystemExit("Labels must not be negative.")
        return labels, int(labels.max()) + 1
    if not bool(((labels == labels.amax(1, keepdim=True)).sum(1) == 1).all()):
        raise SystemExit("There are soft labels without one largest entry: they do not tell the class of their image.")
    if not bool(((labels == 0) | (labels == 1)).all()):
        print("The labels are soft. Each image goes to the class of its largest entry; the rest is lost, so results")
        print("can be below the published ones. cudd has the recipe's teacher label the images anew.")
    return labels.argmax(1), labels.shape[1]


def folder_names(classes: int, names: list[str]) -> list[str]:
    """Return a folder name for every class, sorted in their order: the class names, or numbers of five digits.

    `cudd evaluate` reads numbers of five digits as the labels of unnamed classes, and compares names with the data's.
    """
    if not names:
        return [f"{label:05d}" for label in range(classes)]
    if len(names) != classes:
        raise SystemExit(f"There are {len(names)} class names, but the labels have {classes} classes.")
    bad = [name for name in names if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|')]
    if bad or names != sorted(set(names)):
        problem = f"{bad[0]!r} is no name for a folder" if bad else "they are not different and in the order of text"
        raise SystemExit(
            f"--class-names: {problem}, as readers of folders need them. Leave them out: classes then have numbers."
        )
    return names


def to_pixels(images: Tensor, mean: list[float], std: list[float], clip: bool) -> Tensor:
    """Undo the normalisation of float [N, C, H, W] and return uint8; print how much was clipped."""
    if len(mean) != images.shape[1] or len(std) != images.shape[1]:
        raise SystemExit(f"--mean and --std need {images.shape[1]} values each, as many as the images have channels.")
    images = images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    if not bool(images.isfinite().all()):
        raise SystemExit("The images hold values that are not finite (nan or inf).")
    low, high, contrast = float(images.min()), float(images.max()), float(images.std())
    outside = float(((images < 0) | (images > 1)).float().mean())
    state = f"Without the normalisation, values run from {low:.2f} to {high:.2f}"
    if (outside > MOST_OUTSIDE or contrast < LEAST_CONTRAST) and not clip:
        sign = f"{outside:.0%} are outside [0, 1]" if outside > MOST_OUTSIDE else f"their deviation is {contrast:.3f}"
        raise SystemExit(
            f"{state} and {sign}: these are no pictures. Either the images are ZCA-whitened, and nothing trained on "
            "pictures can use them (MTT and DATM keep the same images, transformed back, in images_zca_*.pt: convert "
            "these with --mean 0,0,0 --std 1,1,1); or --mean and --std are not those they were normalised with (0,0,0 "
            "and 1,1,1 if they were not). --clip writes them all the same."
        )
    print(f"{state}; {outside:.2%} of them were outside [0, 1] and are clipped.")
    if len(images) > 9 and float(images.mean((1, 2, 3)).std()) < EVEN * contrast:
        print("All images are about equally bright. So are whitened ones, and those that began as noise: if the paper")
        print("says ZCA, these are not pictures and their accuracy here means nothing.")
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


def numbers(text: str) -> list[float]:
    """Parse `0.4914,0.4822,0.4465`."""
    return [float(each) for each in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    """Convert one set."""
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("images", type=Path, help="file with the images, and with the labels if LABELS is not given")
    words.add_argument("labels", type=Path, nargs="?")
    words.add_argument("--mean", type=numbers, required=True, metavar="R,G,B", help="what was subtracted, in [0, 1]")
    words.add_argument("--std", type=numbers, required=True, metavar="R,G,B", help="what it was then divided by")
    words.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="a new folder")
    words.add_argument("--class-names", default="", metavar="A,B,C", help="in the order of the labels")
    words.add_argument("--key", default="", help="place in IMAGES to look at only, such as data.0")
    words.add_argument("--clip", action="store_true", help="write what does not look like pictures, too")
    given = words.parse_args(arguments)
    if given.to.exists() and (not given.to.is_dir() or any(given.to.iterdir())):
        raise SystemExit(f"--to {given.to} is there already. Give a new folder.")

    images, rest = choose(read_tensors(given.images), given.key)
    labels = choose_labels(read_tensors(given.labels) if given.labels else rest, len(images))
    labels, classes = hard_labels(labels)
    folders = folder_names(
        classes, [name.strip() for name in given.class_names.split(",")] if given.class_names else []
    )
    counts = torch.bincount(labels, minlength=classes).tolist()
    if 0 in counts:
        raise SystemExit(f"Class {counts.index(0)} of {classes} has no images: folders would be numbered wrongly.")
    pixels = to_pixels(images, given.mean, given.std, given.clip)

    for label, folder in enumerate(folders):
        (given.to / folder).mkdir(parents=True)
        for number, image in enumerate(pixels[labels == label]):
            rows = image[0] if len(image) == 1 else image.permute(1, 2, 0)
            Image.fromarray(rows.numpy()).save(given.to / folder / f"{number:05d}.png")
    print(f"{given.to}: {len(pixels)} images of {classes} classes, {min(counts)} to {max(counts)} a class.")
    if min(counts) != max(counts):
        print("`cudd evaluate` needs the same number of images in every class.")


if __name__ == "__main__":
    main()
