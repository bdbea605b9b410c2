"""Exports of distilled sets for other tools, and imports of sets that others made.

`write_export` and `read_set` are the whole interface; every format has a file of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cudd_core import software_version
from cudd_core.codec import content_digest, read_record
from cudd_core.data.image_folder import list_folders
from cudd_core.errors import ConfigError, DataError, StoreError
from cudd_core.exchange import dd_ranking, hf, image_folder, rded, sre2l
from cudd_core.exchange.bundle import Bundle, Labelling, Origin, Written
from cudd_core.exchange.card import card
from cudd_core.exchange.foreign import read_class_folders
from cudd_core.exchange.manifest import (
    CARD_FILE,
    EXPORT_FILE,
    ExportManifest,
    irreplaceable,
    is_export,
    read_manifest,
    write_manifest,
)
from cudd_core.exchange.soft_labels import write_soft_labels
from cudd_core.exchange.staging import staged_folder
from cudd_core.exchange.tree import read_tree
from cudd_core.manifest import MANIFEST_FILE
from cudd_core.records import SyntheticSet

__all__ = [
    "FORMATS",
    "Bundle",
    "ExportManifest",
    "Imported",
    "Labelling",
    "Origin",
    "read_set",
    "write_export",
]


@dataclass(frozen=True)
class Format:
    """One format: its writer, the reader of its exports, and what README.md says about opening it."""

    write: Callable[[Bundle, Path], Written]
    read_own: Callable[[Path, ExportManifest], SyntheticSet]
    opening: str


FORMATS: dict[str, Format] = {
    "imagefolder": Format(
        image_folder.write,
        read_tree,
        '    torchvision.datasets.ImageFolder("PATH/OF/THIS/FOLDER/train")    # PyTorch\n'
        '    datasets.load_dataset("imagefolder", data_dir="PATH/OF/THIS/FOLDER", split="train")',
    ),
    "hf": Format(hf.write, hf.read_own, '    datasets.load_dataset("PATH/OF/THIS/FOLDER", split="train")'),
    "sre2l": Format(
        sre2l.write,
        read_tree,
        "Give `syn_data` to SRe2L's scripts as `--train-dir` (validate/train_KD.py) or as the folder to relabel.",
    ),
    "rded": Format(
        rded.write, read_tree, "Put `syn_data` where RDED looks for it (exp/NAME/syn_data) and run its validation."
    ),
    "ddranking": Format(
        dd_ranking.write,
        read_tree,
        "    python score.py --real FOLDER_OF_REAL_DATA        # needs: pip install ddranking==0.2.0 safetensors\n\n"
        "`data.safetensors` holds `images` (float32, normalised with mean and std of `ddranking.json`), `labels` and, "
        "where a teacher was at hand, `soft_labels`: its logits of each image as it is. `images/` holds the same as "
        "files.",
    ),
}
"""Name on the command line → format."""


@dataclass(frozen=True)
class Imported:
    """A set that was read from a folder.

    `named`: whether its class names are real; otherwise they are the labels. `manifest`: that of an export of ours.
    """

    synthetic: SyntheticSet
    format: str
    named: bool
    manifest: ExportManifest | None = None


def write_export(bundle: Bundle, format_name: str, target: Path, *, force: bool = False) -> ExportManifest:
    """Write a set to `target` in a format of `FORMATS`, with its soft labels if the bundle has any.

    The folder appears once everything is written. `force` replaces a previous export, unless that would lose what
    somebody else added to it (`irreplaceable`).

    Raises:
        ConfigError: the format is unknown, the target is in use, or the set is empty or does not fit the format.
        ResourceError: the target cannot be written.
    """
    if format_name not in FORMATS:
        raise ConfigError(f"There is no format {format_name!r}. Formats: {', '.join(FORMATS)}.")
    if not len(bundle.synthetic.labels):
        raise ConfigError("The set has no images; there is nothing to export.")
    chosen = FORMATS[format_name]
    with staged_folder(target, force, irreplaceable) as folder:
        written = chosen.write(bundle, folder)
        if bundle.labelling is not None:
            write_soft_labels(bundle, written, folder)
        (folder / CARD_FILE).write_text(card(format_name, bundle, chosen.opening), encoding="utf-8")
        return write_manifest(folder, format_name, f"cudd {software_version()}", bundle, written)


def read_set(folder: Path) -> Imported:
    """Read a distilled set: an export of ours, a stored set (`cudd fetch RUN assemble`), or somebody else's folder.

    Without a manifest the layout is recognised by names: DD-Ranking's settings, Parquet files, SRe2L's `newKKK`, RDED's
    `KKKKK`, otherwise class folders with images. Sets of ours come back bit for bit.

    Raises:
        DataError: there is nothing readable, a file is damaged, or an image does not fit; the message says which.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder. Give the folder of a distilled set.")
    if is_export(folder):
        manifest = read_manifest(folder)
        if manifest.format not in FORMATS:
            raise DataError(f"{folder} has the format {manifest.format!r}, which this software does not know.")
        synthetic = FORMATS[manifest.format].read_own(folder, manifest)
        if content_digest(synthetic) != manifest.digest:
            raise DataError(f"{folder} does not hold the set that {EXPORT_FILE} names. Export or copy it again.")
        return Imported(synthetic, manifest.format, True, manifest)
    if (folder / MANIFEST_FILE).is_file():
        return Imported(_stored_set(folder), "stored", True)
    name, synthetic = _foreign(folder)
    unnamed = tuple(str(label) for label in range(len(synthetic.class_names)))
    return Imported(synthetic, name, synthetic.class_names != unnamed)


def _stored_set(folder: Path) -> SyntheticSet:
    try:
        record = read_record(folder)
    except StoreError as error:
        raise DataError(f"{error} Fetch the set again.") from error
    if not isinstance(record, SyntheticSet):
        raise DataError(f"{folder} holds a {type(record).__name__}, not a set. `cudd fetch RUN assemble` copies one.")
    return record


def _foreign(folder: Path) -> tuple[str, SyntheticSet]:
    if dd_ranking.recognises(folder):
        return "ddranking", dd_ranking.read(folder)
    if hf.recognises(folder):
        return "hf", hf.read(folder)
    inner = folder / sre2l.ROOT
    for place in (folder, inner) if inner.is_dir() else (folder,):
        folders = list_folders(place)
        for name, layout in (("sre2l", sre2l), ("rded", rded)):
            if folders and all(map(layout.FOLDER.fullmatch, folders)):
                return name, read_class_folders(place, layout.FOLDER)
    if pickles := sorted(file.name for kind in ("*.pt", "*.pth", "*.tar", "*.pkl") for file in folder.glob(kind)):
        raise DataError(
            f"{folder} holds {pickles[0]}, a pickle, which is never loaded here since it can run any program. Save its "
            "images as PNG files, one folder a class: examples/tensors_to_folder.py does that with .pt tensors."
        )
    return "imagefolder", image_folder.read(folder)
