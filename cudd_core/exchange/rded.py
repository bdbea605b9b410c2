"""RDED's layout: `KKKKK/classKKKKK_idNNNNN`, with K the label and N the image's number.

Names are those of the synthesis script of github.com/LINs-lab/RDED, whose own loader finds the folder of a label by its
five digits and takes every file in it. RDED writes JPEG; it reads PNG too, which is lossless.
"""

from __future__ import annotations

import re
from pathlib import Path

from cudd_core.errors import ConfigError
from cudd_core.exchange.bundle import Bundle, Written
from cudd_core.exchange.tree import digits, write_tree

ROOT = "syn_data"
FOLDER = re.compile(r"(\d{5})")
_MOST = 10**5


def write(bundle: Bundle, folder: Path) -> Written:
    """Write `syn_data`, which RDED expects below `exp/NAME`. Raises ConfigError if it cannot name as many classes."""
    synthetic = bundle.synthetic
    classes = len(synthetic.class_names)
    if classes > _MOST:
        raise ConfigError(f"RDED's folder names have five digits; {classes} classes are too many. Use imagefolder.")
    n = digits(len(synthetic.labels), 5)
    folders = [f"{label:05d}" for label in range(classes)]
    return write_tree(synthetic, folder, ROOT, folders, lambda label, rank: f"class{label:05d}_id{rank:0{n}d}")
