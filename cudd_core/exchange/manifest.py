"""`export.json`: what an export holds, so that it can be checked and read back without guessing."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from cudd_core.codec import content_digest
from cudd_core.errors import DataError, StoreError
from cudd_core.exchange.bundle import Bundle, Origin, Written
from cudd_core.manifest import ManifestFile, check_paths, describe_files, verify_files

EXPORT_FILE = "export.json"
VERSION = 1
"""Raised whenever an older reader would misread an export."""

CARD_FILE = "README.md"
LABELS_FOLDER = "soft_labels"
LICENCE = "unknown: this software does not know the licence of the source data, which applies to images made from it"
CITATION = (
    "Z. Ma, A. Cao, F. Yang, Y. Gong, X. Wei: Curriculum Dataset Distillation. arXiv:2405.09150, 2024. "
    "https://arxiv.org/abs/2405.09150"
)


@dataclass(frozen=True)
class ExportManifest:
    """What `export.json` holds.

    `digest`: of the SyntheticSet's content; `images`: the shape [n, C, H, W]; `classes`: the true names, index = label.
    `root` and `folders`: see `Written`. `soft_labels`: whether labels for all epochs are included. `files`: all files
    except this one.
    """

    format: str
    version: int
    software: str
    digest: str
    images: tuple[int, int, int, int]
    classes: tuple[str, ...]
    root: str
    folders: tuple[str, ...]
    soft_labels: bool
    licence: str
    citation: str
    origin: Origin
    files: tuple[ManifestFile, ...]


_MANIFEST = TypeAdapter(ExportManifest)


def is_export(folder: Path) -> bool:
    """Whether a folder has the manifest of an export."""
    return (folder / EXPORT_FILE).is_file()


def irreplaceable(folder: Path) -> str:
    """Return why a folder must not be replaced, an empty string if it may.

    Reasons: it is not an export, it holds a file that no export wrote, or its card was edited.
    """
    try:
        manifest = _MANIFEST.validate_json((folder / EXPORT_FILE).read_bytes(), strict=True)
    except (OSError, ValueError, RecursionError):
        return f"is no export (there is no {EXPORT_FILE} that this software wrote)"
    own = {EXPORT_FILE, *(file.path for file in manifest.files)}
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    strange = sorted(name for path in found if (name := path.relative_to(folder).as_posix()) not in own)
    if strange:
        return f"holds {strange[0]}, which is no part of the export"
    try:
        verify_files(
            folder, [file for file in manifest.files if file.path == CARD_FILE and (folder / CARD_FILE).exists()]
        )
    except StoreError:
        return f"its {CARD_FILE} was edited (move that away, and the rest can be replaced)"
    return ""


def write_manifest(folder: Path, format_name: str, software: str, bundle: Bundle, written: Written) -> ExportManifest:
    """Describe all files of a finished export and write the manifest beside them."""
    n, channels, height, width = bundle.synthetic.images.shape
    manifest = ExportManifest(
        format=format_name,
        version=VERSION,
        software=software,
        digest=content_digest(bundle.synthetic),
        images=(n, channels, height, width),
        classes=bundle.synthetic.class_names,
        root=written.root,
        folders=written.folders,
        soft_labels=bundle.labelling is not None,
        licence=LICENCE,
        # The paper, if its method made the set; sets that others made are cited differently.
        citation=CITATION if bundle.origin.recipe else "",
        origin=bundle.origin,
        files=describe_files(folder, EXPORT_FILE),
    )
    text = json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / EXPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> ExportManifest:
    """Read the manifest and check the files that it lists, except soft labels and the card.

    Raises:
        DataError: the manifest cannot be read or has another version, or a file is missing or altered.
    """
    path = folder / EXPORT_FILE
    again = "Export or copy the set again."
    try:
        text = path.read_bytes()
        if (version := json.loads(text).get("version")) != VERSION:
            raise DataError(f"{path} has version {version!r}; this software reads version {VERSION}. Update it.")
        manifest = _MANIFEST.validate_json(text, strict=True)
        check_paths(manifest.files, EXPORT_FILE)
        # People edit the card (to add a licence, for example); labels are not read here, and may be many gigabytes.
        unread = (CARD_FILE, f"{LABELS_FOLDER}/")
        verify_files(folder, [file for file in manifest.files if not file.path.startswith(unread)])
    except StoreError as error:
        raise DataError(f"{error} {again}") from error
    except ValidationError as error:
        raise DataError(
            f"{path} was altered: {error.errors()[0]['loc']} {error.errors()[0]['msg']}. {again}"
        ) from error
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} cannot be read ({error}). {again}") from error
    return manifest
