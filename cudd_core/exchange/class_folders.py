"""Class names → folder names that every file system accepts and every loader sorts in the order of the classes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cudd_core.data.image_folder import class_order

_UNSAFE = re.compile(r"[^A-Za-z0-9 _.+-]+")
_RESERVED = {"con", "prn", "aux", "nul", *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10))}
_LONGEST = 80


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return a folder name for every class: the names themselves if they are safe, otherwise NUMBER_NAME for all.

    Safe names have only letters, digits and a few signs, are not reserved by file systems or skipped by `datasets`
    (`__…`), differ even if case is ignored, and sort in the order of the classes, both as text (as torchvision sorts)
    and by `class_order`.

    Example:
        >>> class_folders(["cat", "dog"]), class_folders(["dog", "a/b", ".."])
        (('cat', 'dog'), ('0_dog', '1_a_b', '2_'))
    """
    cleaned = [_clean(name) for name in names]
    reserved = any(name.lower().split(".")[0] in _RESERVED or name.startswith("__") for name in names)
    plain = cleaned == list(names) and all(cleaned) and not reserved
    in_order = tuple(sorted(names)) == class_order(list(names)) == tuple(names)
    if plain and in_order and len({name.casefold() for name in names}) == len(names):
        return tuple(names)
    width = len(str(max(len(names) - 1, 0)))
    return tuple(f"{number:0{width}d}_{name}" for number, name in enumerate(cleaned))


def _clean(name: str) -> str:
    return _UNSAFE.sub("_", name)[:_LONGEST].rstrip(" .").lstrip(" .-")
