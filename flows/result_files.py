"""Files that a command writes where its user says, outside any store."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from cudd_core.errors import ConfigError, ResourceError


def check_writable(file: Path | None) -> None:
    """Raise if the file of `--summary`, if any, cannot be written: before hours of work, not after them."""
    if file is None:
        return
    if file.is_dir():
        raise ConfigError(f"--summary {file} is a folder; give the name of a file.")
    try:
        if _is_written_through(file):
            file.open("a").close()
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = _partial(file.resolve())
            partial.touch()
            partial.unlink()
    except OSError as error:
        raise ResourceError(f"--summary {file} cannot be written ({error.strerror}).") from error


def check_folder(folder: Path) -> None:
    """Raise if the folder of `--to` cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ResourceError(f"--to {folder} cannot be written ({error.strerror}).") from error


def write_json(result: dict[str, Any], file: Path) -> None:
    """Write `result` to a file, completely or not at all; or into a pipe or device."""
    text = json.dumps(result, indent=2, ensure_ascii=False) + "\n"
    if _is_written_through(file):
        file.write_text(text, encoding="utf-8")
        return
    file = file.resolve()  # of a link, its target
    partial = _partial(file)
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)


def copy_files(folder: Path, to: Path) -> None:
    """Copy the contents of a folder into another one, which keeps its own mode and other contents."""
    try:
        for file in sorted(folder.rglob("*")):
            target = to / file.relative_to(folder)
            if file.is_dir():
                target.mkdir(exist_ok=True)
            else:
                shutil.copyfile(file, target)
    except OSError as error:
        raise ResourceError(
            f"--to {to} cannot be written ({error.strerror}). The comparison is finished; its files lie in {folder}."
        ) from error


def _is_written_through(file: Path) -> bool:
    """Whether it is a pipe or a device, such as /dev/stdout, which must not be replaced by another file."""
    return file.exists() and (not file.is_file() or file.absolute().is_relative_to("/dev"))


def _partial(file: Path) -> Path:
    return file.with_name(f".{file.name}.partial")
