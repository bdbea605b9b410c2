"""SRe2L's layout: `newKKK/classKKK_idNNN`, with K the label and N the image's number.

Names are those of the synthesis scripts of github.com/VILA-Lab/SRe2L (MIT), whose training scripts read the folder with
torchvision's ImageFolder. SRe2L writes JPEG; it reads PNG too, which is lossless. If labels have four or more digits,
all names get wider, since ImageFolder sorts names as text.
"""

from __future__ import annotations

import re
from pathlib import Path

from cudd_core.exchange.bundle import Bundle, Written
from cudd_core.exchange.tree import digits, write_tree

ROOT = "syn_data"
FOLDER = re.compile(r"new(\d+)")


def write(bundle: Bundle, folder: Path) -> Written:
    """Write `syn_data`, which SRe2L's scripts are given as `--train-dir` or as the folder to relabel."""
    synthetic = bundle.synthetic
    classes = len(synthetic.class_names)
    k, n = digits(classes, 3), digits(len(synthetic.labels), 3)
    folders = [f"new{label:0{k}d}" for label in range(classes)]
    return write_tree(synthetic, folder, ROOT, folders, lambda label, rank: f"class{label:0{k}d}_id{rank:0{n}d}")
